"""A federation's certificates and keys for tests, made in milliseconds and never from a file."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedward_common.ids import Digest, SiteId
from fedward_common.trust.certificates import (
    Identity,
    NodeKey,
    issue_server,
    issue_site,
    make_issuing,
    make_root,
    new_request,
    parse_peer_certificate,
)
from fedward_common.trust.private_files import write_private
from fedward_common.trust.signing import SigningKey
from fedward_server.ports import SiteRecord

FEDERATION = "north"


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site's keys; `record` is what the registry knows of them."""

    site_id: SiteId
    identity: Identity
    node_key: NodeKey
    signing_key: SigningKey

    @property
    def record(self) -> SiteRecord:
        return SiteRecord(
            site_id=self.site_id,
            certificate_sha256=Digest(
                parse_peer_certificate(self.identity.certificate_pem).fingerprint_sha256
            ),
            node_public_key=self.node_key.header,
            signing_public_key=self.signing_key.public_hex,
        )


@dataclass
class Authority:
    """A root and an issuing authority with everything they sign."""

    federation: str = FEDERATION
    root: Identity = field(init=False)
    issuing: Identity = field(init=False)

    def __post_init__(self) -> None:
        self.root = make_root(self.federation, now=now())
        self.issuing = make_issuing(self.root, federation=self.federation, now=now())

    def site_identity(
        self, site: str, *, at: datetime | None = None, lifetime: timedelta = timedelta(days=90)
    ) -> Identity:
        request = new_request(site)
        chain = issue_site(
            self.issuing,
            request.request_pem,
            federation=self.federation,
            site=SiteId(site),
            now=at or now(),
            lifetime=lifetime,
        )
        return Identity(certificate_pem=chain, key_pem=request.key_pem)

    def server_identity(self, *hosts: str) -> Identity:
        request = new_request("edge")
        chain = issue_server(
            self.issuing,
            request.request_pem,
            hosts=hosts or ("localhost", "127.0.0.1"),
            now=now(),
        )
        return Identity(certificate_pem=chain, key_pem=request.key_pem)

    def site(self, site: str, **certificate: object) -> Site:
        return Site(
            site_id=SiteId(site),
            identity=self.site_identity(site, **certificate),  # type: ignore[arg-type]
            node_key=NodeKey.generate(),
            signing_key=SigningKey.generate(),
        )


def write_identity(folder: Path, name: str, identity: Identity, root: Identity) -> None:
    """Writes `<name>.pem`, `<name>.key` (0600) and `root.pem`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.pem").write_bytes(identity.certificate_pem)
    write_private(folder / f"{name}.key", identity.key_pem)
    (folder / "root.pem").write_bytes(root.certificate_pem)
