"""Identifiers that are parsed once and trusted afterwards."""

import re
from typing import NewType

from fedward_common.errors import ConfigError

SiteId = NewType("SiteId", str)
"""A hospital in a federation: lower-case letters, digits and hyphens, at most 63 (a DNS label)."""
StudyId = NewType("StudyId", str)
"""The name a study lead gave a study; the study's identity is its digest, not this."""
Digest = NewType("Digest", str)
"""A SHA-256 in lower-case hexadecimal."""

LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
DIGEST = r"^[0-9a-f]{64}$"


def parse_site_id(text: str) -> SiteId:
    """`text` as a site id. Raises ConfigError when it is not a lower-case DNS label."""
    if not re.fullmatch(LABEL, text):
        raise ConfigError(
            f"site id: expected lower-case letters, digits and hyphens (at most 63), found {text!r}"
        )
    return SiteId(text)


def parse_digest(text: str) -> Digest:
    """`text` as a digest. Raises ConfigError when it is not 64 lower-case hexadecimal digits."""
    if not re.fullmatch(DIGEST, text):
        raise ConfigError(f"digest: expected 64 lower-case hexadecimal digits, found {text!r}")
    return Digest(text)
