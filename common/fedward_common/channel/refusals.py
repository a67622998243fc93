"""Why the edge refuses: one word per reason, on the wire, in both logs and in the tests."""

from enum import StrEnum
from typing import Final


class Refusal(StrEnum):
    """A reason to refuse a connection (the first seven) or a call."""

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
    Refusal.BODY_TOO_LARGE: "a body is larger than 8 MiB",
    Refusal.MALFORMED: "the body is not the message that the operation takes",
    Refusal.RATE: "more calls than one site may make at a time",
    Refusal.UPSTREAM: "the coordinator's SuperLink does not answer",
}


def explain_refusal(code: str) -> str:
    """The sentence for a code from the wire; an unknown code is never shown as it came."""
    try:
        return EXPLANATIONS[Refusal(code)]
    except ValueError:
        return "a reason that this version does not know"
