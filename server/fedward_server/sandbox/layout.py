"""A federation on disk: folders, keys, certificates and settings of a coordinator and its sites.

What an operator and four site engineers would do by enrolment is done here by one person: the files
are the same, so the processes that read them are the same (rules 22).
"""

import json
import secrets
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.trust.authority import (
    Identity,
    issue_server,
    issue_site,
    make_issuing,
    make_root,
    new_request,
)
from fedward_common.trust.certificates import NodeKey
from fedward_common.trust.private_files import write_atomically, write_private
from fedward_common.trust.signing import SigningKey, key_sha256
from fedward_server.sandbox.clinical import EVENTS_TABLE, patients_beside
from fedward_server.sandbox.datasets_images import IMAGES_TABLE

MARKER = ".fedward-sandbox"
FEDERATION = "sandbox"
FIXED_PORTS = range(12_000, 32_000)
"""Where nothing of the machine's own traffic lands (Linux deals 32768 to 60999)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteFolder:
    """One site of the sandbox: its folder, its settings file and the digests of its keys.

    `approver` is the key with which the site's data steward approves studies and pauses.
    """

    site: SiteId
    folder: Path
    settings_file: Path
    data_file: Path
    key_sha256: str
    node_key_sha256: str
    approver: SigningKey

    @property
    def data_files(self) -> tuple[Path, ...]:
        """Every file of the site's patients: clinical events are two tables; images beside their
        table and whole patients are below a folder.
        """
        whole = self.data_file.parent if self.data_file.name == IMAGES_TABLE else self.data_file
        if whole.is_dir():
            return tuple(sorted(path for path in whole.rglob("*") if path.is_file()))
        if self.data_file.name != EVENTS_TABLE:
            return (self.data_file,)
        return (patients_beside(self.data_file), self.data_file)

    @property
    def approver_file(self) -> Path:
        """The approver's key; in a hospital it is not on the site's machine."""
        return self.folder / "approver" / "approver.pem"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Everything that the sandbox's processes read."""

    root: Path
    run: Path
    coordinator: Path
    settings_file: Path
    lead: SigningKey
    issuing: Identity
    ca_pem: bytes
    ports: tuple[int, ...]
    sites: Mapping[SiteId, SiteFolder]

    @property
    def lead_sha256(self) -> str:
        """The digest by which a study names its lead's key."""
        return key_sha256(self.lead.public_hex)


def prepare_root(root: Path) -> None:
    """Makes `root` an empty folder of ours; an earlier sandbox there is removed.

    Raises:
        ConfigError: `root` holds something that is not a sandbox's.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        if not (root / MARKER).exists():
            raise ConfigError(
                f"--out {root}: expected a new folder or an earlier sandbox, found something else. "
                "Name another folder"
            )
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o700)
    (root / MARKER).write_text("made by fedward-server sandbox; removed by the next one here\n")


def free_ports(count: int) -> tuple[int, ...]:
    """`count` different ports of 127.0.0.1 that nothing listens on now.

    Below the range that the kernel deals to outgoing connections: a port from there may be taken
    by anybody's connection before its process binds it.
    """
    with ExitStack() as stack:
        found: list[int] = []
        for port in secrets.SystemRandom().sample(FIXED_PORTS, len(FIXED_PORTS)):
            one = stack.enter_context(socket.socket())
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return tuple(found)
    raise ConfigError(f"sandbox: expected {count} free ports of 127.0.0.1, found {len(found)}")


def make_layout(root: Path, data_files: Mapping[SiteId, Path]) -> Layout:
    """Keys and certificates for a coordinator and one site per data file, under `root`."""
    now = datetime.now(UTC)
    authority = make_root(FEDERATION, now=now)
    issuing = make_issuing(authority, federation=FEDERATION, now=now)
    coordinator = root / "coordinator"
    for folder in (coordinator / "keys", root / "sites"):
        folder.mkdir(parents=True)
    _write_identity(
        coordinator / "keys",
        issuing,
        hosts=["localhost", "127.0.0.1"],
        ca_pem=authority.certificate_pem,
        now=now,
    )
    # Unix socket paths are limited to 107 bytes: they get a short folder of their own.
    run = Path(tempfile.mkdtemp(prefix="fedward-"))
    lead = SigningKey.generate()
    write_private(coordinator / "keys" / "lead.pem", lead.to_pem())
    return Layout(
        root=root,
        run=run,
        coordinator=coordinator,
        settings_file=coordinator / "coordinator.toml",
        lead=lead,
        issuing=issuing,
        ca_pem=authority.certificate_pem,
        ports=free_ports(2 + 2 * len(data_files)),
        sites={
            site: _make_site(root / "sites" / site, site, data_file, issuing, authority, now)
            for site, data_file in data_files.items()
        },
    )


def _write_identity(
    folder: Path, issuing: Identity, *, hosts: Sequence[str], ca_pem: bytes, now: datetime
) -> None:
    request = new_request("coordinator")
    chain = issue_server(issuing, request.request_pem, hosts=hosts, now=now)
    write_private(folder / "tls.key", request.key_pem)
    write_atomically(folder / "tls.pem", chain)
    write_atomically(folder / "ca.pem", ca_pem)


def _make_site(
    folder: Path,
    site: SiteId,
    data_file: Path,
    issuing: Identity,
    authority: Identity,
    now: datetime,
) -> SiteFolder:
    keys = folder / "keys"
    keys.mkdir(parents=True)
    folder.chmod(0o700)
    request = new_request(site)
    chain = issue_site(issuing, request.request_pem, federation=FEDERATION, site=site, now=now)
    signing, node = SigningKey.generate(), NodeKey.generate()
    write_private(keys / "tls.key", request.key_pem)
    write_atomically(keys / "tls.pem", chain)
    write_atomically(keys / "ca.pem", authority.certificate_pem)
    write_private(keys / "signing.pem", signing.to_pem())
    node.write(keys / "node.key")
    public = {
        "certificate_pem": chain.decode(),
        "node_public_key": node.header,
        "signing_public_key": signing.public_hex,
    }
    write_atomically(keys / "public.json", json.dumps(public).encode())
    made = SiteFolder(
        site=site,
        folder=folder,
        settings_file=folder / "site.toml",
        data_file=data_file,
        key_sha256=key_sha256(signing.public_hex),
        node_key_sha256=node.sha256,
        approver=SigningKey.generate(),
    )
    made.approver_file.parent.mkdir(mode=0o700)
    write_private(made.approver_file, made.approver.to_pem())
    return made
