"""Why a coordinator refuses: one word per reason, on the wire, in both logs and in the tests."""

from enum import StrEnum
from typing import Final


class Refusal(StrEnum):
    """A reason to refuse a connection (the first seven) or a call.

    From INVITE_UNKNOWN on they are those of enrolment; the last four never leave the coordinator.
    """

    NO_CERTIFICATE = "no-certificate"
    UNKNOWN_AUTHORITY = "unknown-authority"
    CERTIFICATE_EXPIRED = "certificate-expired"
    CERTIFICATE_NOT_YET_VALID = "certificate-not-yet-valid"
    CERTIFICATE_PURPOSE = "certificate-purpose"
    TLS_VERSION = "tls-version"
    HANDSHAKE = "handshake"
    CERTIFICATE_NAME = "certificate-name"
    OTHER_FEDERATION = "other-federation"
    SITE_UNKNOWN = "site-unknown"
    SITE_REVOKED = "site-revoked"
    CERTIFICATE_NOT_CURRENT = "certificate-not-current"
    NODE_KEY = "node-key"
    ROUTE = "route"
    HEADER = "header"
    BODY_TOO_LARGE = "body-too-large"
    MALFORMED = "malformed"
    RATE = "rate"
    UPSTREAM = "upstream"
    SLOW = "slow"
    MODEL = "model"
    PHASE = "phase"
    BLOB = "blob"
    BLOB_SIZE = "blob-size"
    NO_AUTHORITY = "no-authority"
    REQUEST_KEY = "request-key"
    KEY_REUSED = "key-reused"
    TOO_EARLY = "too-early"
    INVITE_UNKNOWN = "invite-unknown"
    INVITE_EXPIRED = "invite-expired"
    INVITE_USED = "invite-used"
    OTHER_SITE = "other-site"
    PROOF = "proof"
    ALREADY_ENROLLED = "already-enrolled"
    OTHER_KEYS = "other-keys"
    REQUEST_UNKNOWN = "request-unknown"
    FETCH_SIGNATURE = "fetch-signature"
    FETCH_TIME = "fetch-time"
    REQUEST_DECIDED = "request-decided"
    OPERATOR_UNKNOWN = "operator-unknown"
    OPERATOR_TWICE = "operator-twice"
    STATEMENT = "statement"


EXPLANATIONS: Final[dict[Refusal, str]] = {
    Refusal.NO_CERTIFICATE: "the peer showed no certificate",
    Refusal.UNKNOWN_AUTHORITY: "the certificate was not signed by this federation's authority",
    Refusal.CERTIFICATE_EXPIRED: "the site's certificate has expired: renew it",
    Refusal.CERTIFICATE_NOT_YET_VALID: "the site's certificate is not valid yet: check both clocks",
    Refusal.CERTIFICATE_PURPOSE: "the certificate is not one for clients",
    Refusal.TLS_VERSION: "the peer offered no TLS 1.3",
    Refusal.HANDSHAKE: "the TLS handshake failed",
    Refusal.CERTIFICATE_NAME: "the certificate names no site",
    Refusal.OTHER_FEDERATION: "the certificate belongs to another federation",
    Refusal.SITE_UNKNOWN: "the coordinator's registry has no such site",
    Refusal.SITE_REVOKED: "the coordinator revoked this site",
    Refusal.CERTIFICATE_NOT_CURRENT: "the registry holds another certificate for this site",
    Refusal.NODE_KEY: "the Flower node key is not the one registered with this certificate",
    Refusal.ROUTE: "only Flower's twelve Fleet operations pass",
    Refusal.HEADER: "a header is not one of Flower's, or not of its form",
    Refusal.BODY_TOO_LARGE: "a body is larger than 8 MiB (64 KiB when enrolling)",
    Refusal.MALFORMED: "the body is not the message that the operation takes",
    Refusal.RATE: "more calls than one site may make at a time",
    Refusal.UPSTREAM: "the coordinator's SuperLink does not answer",
    Refusal.SLOW: "the call's message did not come in time",
    Refusal.MODEL: "there is no such model for this site, or not yet",
    Refusal.PHASE: "no phase of this study is open for this site",
    Refusal.BLOB: "no such blob is offered to this site, or expected of it, at this moment",
    Refusal.BLOB_SIZE: "the blob is larger than this exchange, or the coordinator's disk, allows",
    Refusal.NO_AUTHORITY: (
        "the issuing authority is not on the coordinator's machine: ask its operator"
    ),
    Refusal.REQUEST_KEY: "the certificate request is not signed by its own EC P-256 key",
    Refusal.KEY_REUSED: "a key in the request was used before: make new keys",
    Refusal.TOO_EARLY: "the site's certificate is too young to be renewed",
    Refusal.INVITE_UNKNOWN: "the invite is not one of this coordinator's: copy it again, whole",
    Refusal.INVITE_EXPIRED: "the invite has expired: ask the coordinator's operator for another",
    Refusal.INVITE_USED: (
        "the invite was used before: if not by you, tell the coordinator's operator at once"
    ),
    Refusal.OTHER_SITE: "the invite is for another site or federation than the request",
    Refusal.PROOF: "a key in the request is not proven to be the site's own",
    Refusal.ALREADY_ENROLLED: "the site is a member already, or waits for its answer",
    Refusal.OTHER_KEYS: (
        "a member whose certificate ended keeps its node, signing and aggregation keys"
    ),
    Refusal.REQUEST_UNKNOWN: "the coordinator has no such request",
    Refusal.FETCH_SIGNATURE: "the question is not signed by the key of the request",
    Refusal.FETCH_TIME: "the question is not of this moment: check both clocks",
    Refusal.REQUEST_DECIDED: "the request was granted or denied before",
    Refusal.OPERATOR_UNKNOWN: "the key is not one of the operators in coordinator.toml",
    Refusal.OPERATOR_TWICE: "this operator's key granted the request before: another must",
    Refusal.STATEMENT: "what the operator signed is not about this request and site",
}


def explain_refusal(code: str) -> str:
    """The sentence for a code from the wire; an unknown code is never shown as it came."""
    try:
        return EXPLANATIONS[Refusal(code)]
    except ValueError:
        return "a reason that this version does not know"
