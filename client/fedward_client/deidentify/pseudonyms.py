"""Names that mean nothing without the site's key: the same patient and object always get the same.

HMAC-SHA-256 with a key that stays at the site: who has only the result cannot try out guesses.
"""

import base64
import hmac
from dataclasses import dataclass
from typing import Final

from fedward_common.errors import ConfigError

MIN_KEY_BYTES: Final = 32
MAX_SHIFT_DAYS: Final = 3650


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """Pseudonyms under one site's key.

    Raises:
        ConfigError: the key is shorter than 32 bytes.
    """

    key: bytes

    def __post_init__(self) -> None:
        if len(self.key) < MIN_KEY_BYTES:
            raise ConfigError(
                f"pseudonym key: expected at least {MIN_KEY_BYTES} bytes, found {len(self.key)}"
            )

    def patient(self, identity: str) -> str:
        """The patient's pseudonym: 24 characters, letters and digits."""
        digest = self._digest(b"patient", identity.encode())
        return "FW" + base64.b32encode(digest[:14]).decode().rstrip("=")[:22]

    def uid(self, uid: str) -> str:
        """The UID in the place of `uid`: 2.25. and 128 bits (PS3.5 B.2)."""
        return f"2.25.{int.from_bytes(self._digest(b'uid', uid.encode())[:16])}"

    def shift_days(self, identity: str) -> int:
        """By how many days back this patient's dates are moved, all by the same: 1..3650."""
        digest = self._digest(b"shift", identity.encode())
        return 1 + int.from_bytes(digest[:8]) % MAX_SHIFT_DAYS

    def _digest(self, purpose: bytes, data: bytes) -> bytes:
        return hmac.digest(self.key, b"fedward/deidentify/v1|" + purpose + b"|" + data, "sha256")
