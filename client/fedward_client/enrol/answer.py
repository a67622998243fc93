"""What the coordinator says of a request for membership."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """`grant` holds the bytes of a grant, not yet verified, when the request was granted."""

    status: Literal["waiting", "granted", "denied"]
    grant: bytes = b""
