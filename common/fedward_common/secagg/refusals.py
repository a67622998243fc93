"""Why a participant or the coordinator of a secure sum stops: one named reason each."""

from enum import StrEnum

from fedward_common.errors import ProtocolError


class Reason(StrEnum):
    """What was wrong. A participant that refuses reveals nothing more in that round."""

    TOO_FEW_SITES = "too-few-sites"
    TOO_FEW_SURVIVORS = "too-few-survivors"
    UNKNOWN_SITE = "unknown-site"
    WRONG_KEY = "wrong-key"
    SIGNATURE = "signature"
    OTHER_ROUND = "other-round"
    OWN_ADVERT_CHANGED = "own-advert-changed"
    REPEATED_KEY = "repeated-key"
    ENVELOPE = "envelope"
    PHASE = "phase"
    ANSWERED_BEFORE = "answered-before"
    SURVIVORS = "survivors"
    TOO_FEW_SIGNATURES = "too-few-signatures"
    SHARES = "shares"
    VECTOR = "vector"
    CAPACITY = "capacity"
    MALFORMED = "malformed"


class SecAggRefused(ProtocolError):
    """A step of the protocol that must not be taken; `reason` names it.

    `site` is who sent what was wrong, where that can be told.
    """

    def __init__(self, reason: Reason, text: str, *, site: str = "") -> None:
        super().__init__(f"secure aggregation ({reason.value}): {text}")
        self.reason = reason
        self.site = site
