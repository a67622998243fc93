"""The coordinator's coordinator.toml as one frozen value, read once by an entry point.

Relative paths are relative to the folder of the file. Unknown keys are refused.
"""

from pathlib import Path
from typing import Annotated, Final

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedward_common.channel.blobs import MAX_BLOB_BYTES
from fedward_common.ids import DIGEST
from fedward_common.namespace import IsolationSettings
from fedward_common.study.files import explain, read_toml
from fedward_common.study.registry import Strict
from fedward_common.trust.authority import TRUST_DOMAIN
from fedward_common.trust.invites import ADDRESS
from fedward_common.trust.statements import PERSON
from fedward_common.unix_sockets import MAX_SOCKET_PATH

FOLDER: Final = "folder"


def _resolve(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str | Path):
        return value
    if not str(value):
        raise ValueError("expected a path, found an empty text")
    return Path((info.context or {}).get(FOLDER, ""), value)


LISTEN: Final = r"^(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):\d{1,5}$"

Location = Annotated[Path, BeforeValidator(_resolve)]
Port = Annotated[int, Field(ge=1, le=65535)]


def probe_host(listen: str) -> str:
    """Where this machine reaches a listener of its own."""
    host = listen.rpartition(":")[0].strip("[]")
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


class TlsPaths(Strict):
    """The edge's certificate chain, its key (0600) and the federation's root."""

    certificate: Location
    key: Location
    ca: Location


class EdgeLimits(Strict):
    """What the edge allows; the 8 MiB of a body is part of the protocol and not set here."""

    poll_seconds: float = Field(default=20.0, ge=1, le=20, description="below SuperNode's 30 s")
    calls_per_second: float = Field(default=100.0, gt=0, le=10_000, description="per site")
    burst: float = Field(default=400.0, ge=1, le=100_000, description="per site")
    max_blob_bytes: int = Field(
        default=MAX_BLOB_BYTES, ge=1 << 20, le=MAX_BLOB_BYTES, description="of one site and round"
    )
    blob_quota_bytes: int = Field(
        default=64 << 30, ge=1 << 20, description="on disk at a time, of all sites together"
    )
    concurrent_calls: int = Field(default=256, ge=1, le=65536, description="all sites together")


class OperatorEntry(Strict):
    """A person who may grant, deny and revoke: known by an Ed25519 key (rules 16)."""

    name: str = Field(pattern=PERSON)
    public_key: str = Field(pattern=DIGEST, description="64 hexadecimal digits")


class EnrolmentSettings(Strict):
    """How hospitals join. Without `listen` they do so by carried files only.

    `address` is how sites reach the listener; it is written into every invite. The port is open
    only while an invite is, and never with `open = false`.
    """

    listen: str | None = Field(default=None, pattern=LISTEN, description="address:port")
    address: str | None = Field(default=None, pattern=ADDRESS, description="host:port for sites")
    operators_needed: int = Field(default=2, ge=1, le=9)
    open: bool = True

    @model_validator(mode="after")
    def _reachable(self) -> "EnrolmentSettings":
        if self.listen is not None and self.address is None:
            raise ValueError("address: expected how sites reach the listener, found none")
        return self


class AuthoritySettings(Strict):
    """The issuing authority's key: where the passphrase lies, if it is encrypted.

    The file may be one that systemd's LoadCredential brings.
    """

    passphrase_file: Location | None = None


class CoordinatorSettings(Strict):
    """Everything in coordinator.toml."""

    federation: str = Field(pattern=f"^{TRUST_DOMAIN}$", description="the SPIFFE trust domain")
    listen: str = Field(
        default="0.0.0.0:9443", pattern=LISTEN, description="address:port of the edge"
    )
    address: str | None = Field(
        default=None, pattern=ADDRESS, description="host:port of the edge as sites reach it"
    )
    server_name: str | None = Field(
        default=None, pattern=f"^{TRUST_DOMAIN}$", description="in its certificate, if not the host"
    )
    state: Location = Field(default=Path("state"), validate_default=True)
    run: Location = Field(default=Path("run"), validate_default=True)
    database: str = Field(default="", validate_default=True, description="SQLAlchemy URL")
    tls: TlsPaths
    superlink_port: Port = 9470
    limits: EdgeLimits = EdgeLimits()
    operators: tuple[OperatorEntry, ...] = Field(default=(), strict=False)
    enrolment: EnrolmentSettings = EnrolmentSettings()
    authority: AuthoritySettings = AuthoritySettings()
    isolation: IsolationSettings = IsolationSettings()

    @property
    def listen_host(self) -> str:
        """The address that the edge binds."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def listen_port(self) -> int:
        """The port that the edge binds."""
        return int(self.listen.rpartition(":")[2])

    @property
    def probe_host(self) -> str:
        """Where this machine reaches its own edge."""
        return probe_host(self.listen)

    @property
    def kick_socket(self) -> Path:
        """Where the ServerApp tells the edge which nodes have work."""
        return self.run / "edge.sock"

    @property
    def phase_socket(self) -> Path:
        """Where a ServerApp opens phases and hears the answers to their steps."""
        return self.run / "phases.sock"

    @property
    def blob_socket(self) -> Path:
        """Where a ServerApp offers blobs and gets those of the sites."""
        return self.run / "blobs.sock"

    @property
    def blob_folder(self) -> Path:
        """Where blobs lie while a round lasts, in files without names."""
        return self.state / "blobs"

    @property
    def edge_log(self) -> Path:
        """The edge's hash-chained log."""
        return self.state / "audit" / "edge.jsonl"

    @property
    def desk_log(self) -> Path:
        """The hash-chained log of what operators did: invites, grants, denials, revocations."""
        return self.state / "audit" / "desk.jsonl"

    @property
    def enrolment_log(self) -> Path:
        """The enrolment listener's hash-chained log: requests, answers, refusals."""
        return self.state / "audit" / "enrolment.jsonl"

    @property
    def superlink_socket(self) -> Path:
        """Where edge and commands reach SuperLink: a bridge leads into its private network."""
        return self.run / "superlink.sock"

    @property
    def authority_folder(self) -> Path:
        """Where the federation's certificate authority lies, if this machine holds it."""
        return self.state / "authority"

    @field_validator("database")
    @classmethod
    def _default_database(cls, value: str, info: ValidationInfo) -> str:
        return value or f"sqlite:///{info.data.get('state', Path())}/registry.sqlite"

    @model_validator(mode="after")
    def _consistent(self) -> "CoordinatorSettings":
        if not 1 <= self.listen_port <= 65535:
            raise ValueError(f"listen: expected a port from 1 to 65535, found {self.listen_port}")
        if self.listen_port == self.superlink_port:
            raise ValueError(
                f"superlink_port: expected another port than listen's, found {self.listen_port}"
            )
        if len(str(self.superlink_socket)) > MAX_SOCKET_PATH:
            raise ValueError(
                f"run: expected a folder whose path has at most {MAX_SOCKET_PATH - 15} characters, "
                f"found {len(str(self.run))}"
            )
        for what in ("name", "public_key"):
            found = [getattr(operator, what) for operator in self.operators]
            if len(set(found)) != len(found):
                raise ValueError(
                    f"operators: expected a different {what} for each, found one twice"
                )
        return self


def load_coordinator_settings(path: Path) -> CoordinatorSettings:
    """The settings in `path`.

    Raises:
        ConfigError: no such file, not TOML, an unknown or missing key, a wrong type or range; one
            line per problem with the key, what was expected and what was found.
    """
    source = path.absolute()
    values = read_toml(source)
    try:
        return CoordinatorSettings.model_validate(values, context={FOLDER: str(source.parent)})
    except ValidationError as error:
        raise explain(error, source=str(source)) from error
