"""What a site and its coordinator tell each other of themselves: versions, clocks, who left."""

import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fedward_common.ids import LABEL

DISTRIBUTIONS: Final = ("fedward-client", "fedward-common", "flwr", "grpcio")
"""What the coordinator learns of this site's software, and nothing else."""
COMPARED: Final = ("fedward-common", "flwr", "grpcio")
"""What both sides run and must agree on: the protocol, Flower, the channel."""
SKEW_SECONDS: Final = 60.0
"""Flower takes signatures of 300 s; a clock that is a minute off is on its way there."""
VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
MAX_REVOKED: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Greeting:
    """The coordinator's answer to Hello. `skew_seconds`: how far its clock is before ours."""

    versions: Mapping[str, str]
    skew_seconds: float
    revoked: tuple[str, ...]

    @classmethod
    def of(
        cls,
        *,
        versions: Mapping[str, str],
        time: float,
        revoked: Iterable[str],
        asked_at: float,
        answered_at: float,
    ) -> "Greeting":
        """The answer as a value; what is not a version or a site's id is left out, never shown."""
        known = {
            name: version
            for name, version in versions.items()
            if name in COMPARED and VERSION.fullmatch(version)
        }
        ids = [site for site in revoked if re.fullmatch(LABEL, site)]
        return cls(
            versions=known,
            skew_seconds=time - (asked_at + answered_at) / 2,
            revoked=tuple(dict.fromkeys(ids))[:MAX_REVOKED],
        )

    @property
    def clocks_agree(self) -> bool:
        """Whether both clocks are within a minute."""
        return abs(self.skew_seconds) <= SKEW_SECONDS

    def differing(self, ours: Mapping[str, str]) -> dict[str, str]:
        """Name -> the coordinator's version, where it is not ours."""
        return {
            name: version
            for name, version in self.versions.items()
            if name in ours and ours[name] != version
        }


def own_versions() -> dict[str, str]:
    """The versions that this site runs, by distribution name; what is not installed is left out."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
