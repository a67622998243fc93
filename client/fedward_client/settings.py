"""A hospital's site.toml as one frozen value: read once by an entry point and passed on.

Relative paths are relative to the folder of the file. Unknown keys are refused.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from fedward_common.ids import DIGEST, LABEL
from fedward_common.study.files import explain, read_toml
from fedward_common.study.registry import Strict

DOMAIN_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
USER_NAME = r"^[a-z_][a-z0-9_-]{0,31}$"
FOLDER = "folder"


def _resolve(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    if not value:
        raise ValueError("expected a path, found an empty text")
    folder = (info.context or {}).get(FOLDER)
    return Path(value) if folder is None else Path(folder) / value


Location = Annotated[Path, BeforeValidator(_resolve)]
Port = Annotated[int, Field(ge=1, le=65535)]
Epsilon = Annotated[float, Field(gt=0, allow_inf_nan=False)]
DigestText = Annotated[str, Field(pattern=DIGEST)]
UserName = Annotated[str, Field(pattern=USER_NAME)]


class CoordinatorAddress(Strict):
    """Where the federation's edge listens: the one address a site connects to."""

    address: str = Field(pattern=r"^[^\s:/]+:\d{1,5}$", description="host:port")
    server_name: str | None = Field(
        default=None, pattern=DOMAIN_NAME, description="in its certificate, if not the host"
    )


class Folders(Strict):
    """Where the guard keeps what must survive (`state`) and where its sockets are (`run`)."""

    state: Location = Field(default=Path("state"), validate_default=True)
    run: Location = Field(default=Path("run"), validate_default=True)


class KeyPaths(Strict):
    """The site's keys and certificates. Private keys are 0600 and belong to the service user."""

    tls_certificate: Location
    tls_key: Location
    ca: Location
    node_key: Location
    signing_key: Location


class CsvFile(Strict):
    """One CSV table with a header line."""

    kind: Literal["csv"] = "csv"
    path: Location
    delimiter: str = Field(default=",", min_length=1, max_length=1)


class LoopbackPorts(Strict):
    """Ports of 127.0.0.1 for the site's own processes; nothing outside the host reaches them."""

    gateway: Port = 9471
    runtime: Port = 9472

    @model_validator(mode="after")
    def _distinct(self) -> "LoopbackPorts":
        if self.gateway == self.runtime:
            raise ValueError(f"expected two different ports, found {self.gateway} twice")
        return self


class GuardSettings(Strict):
    """Who may talk to the guard, and how long and how much it keeps of what left.

    Without names, worker and gateway are the guard's own user. With names, `group` is a group of
    all three users: the sockets are then 0660 for that group instead of 0600.
    """

    worker_user: UserName | None = None
    gateway_user: UserName | None = None
    group: UserName | None = None
    reply_hours: float = Field(default=24.0, gt=0, le=24)
    reply_quota_bytes: int = Field(default=2 << 30, ge=1 << 20)

    @model_validator(mode="after")
    def _reachable(self) -> "GuardSettings":
        if (self.worker_user or self.gateway_user) and self.group is None:
            raise ValueError("expected a group that worker, gateway and guard share, found none")
        return self


class PolicyRules(Strict):
    """The hospital's limits. Every limit means the admission figure (RDP filter), the larger one.

    `delta` is the largest delta a study may declare; `max_epsilon_per_study` holds at the study's
    own delta, `max_epsilon_total` (all studies of this hospital together) at `delta` itself.
    """

    allowed_tasks: tuple[str, ...] = Field(min_length=1, strict=False)
    min_noise: float = Field(gt=0, allow_inf_nan=False, description="smallest noise multiplier")
    max_epsilon_per_study: Epsilon
    max_epsilon_total: Epsilon
    delta: float = Field(gt=0, lt=0.01)
    approved_studies: tuple[DigestText, ...] = Field(default=(), strict=False)
    auto_approve: bool = False
    trusted_leads: tuple[DigestText, ...] = Field(default=(), strict=False)
    approved_bundles: tuple[DigestText, ...] = Field(default=(), strict=False)
    allow_evaluation: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> "PolicyRules":
        if self.max_epsilon_per_study > self.max_epsilon_total:
            raise ValueError(
                f"max_epsilon_per_study: expected at most max_epsilon_total = "
                f"{self.max_epsilon_total}, found {self.max_epsilon_per_study}"
            )
        if self.auto_approve and not self.trusted_leads:
            raise ValueError("auto_approve: expected trusted_leads to name the leads, found none")
        return self


class SiteSettings(Strict):
    """Everything in site.toml."""

    site: str = Field(pattern=LABEL)
    federation: str = Field(pattern=DOMAIN_NAME, description="the SPIFFE trust domain")
    coordinator: CoordinatorAddress
    folders: Folders = Field(default_factory=dict, validate_default=True)
    keys: KeyPaths
    data: tuple[CsvFile, ...] = Field(min_length=1, strict=False)
    policy: PolicyRules
    ports: LoopbackPorts = LoopbackPorts()
    guard: GuardSettings = GuardSettings()
    device: Literal["cpu", "cuda"] = "cpu"
    backend: Literal["auto", "opacus", "loop"] = "auto"
    max_records_per_chunk: int = Field(default=4096, ge=1)

    _source: Path = PrivateAttr(default=Path("site.toml"))

    @property
    def source(self) -> Path:
        """The file these settings came from, for messages."""
        return self._source

    @property
    def worker_socket(self) -> Path:
        """Where the worker asks the guard."""
        return self.folders.run / "worker.sock"

    @property
    def gateway_socket(self) -> Path:
        """Where the gateway asks the guard."""
        return self.folders.run / "gateway.sock"

    @property
    def ledger_path(self) -> Path:
        """The budget ledger."""
        return self.folders.state / "ledger.sqlite"

    @property
    def audit_path(self) -> Path:
        """The journal of what happened and what left."""
        return self.folders.state / "audit" / "site.jsonl"

    @property
    def replies_folder(self) -> Path:
        """Sealed replies that may be asked for again."""
        return self.folders.state / "replies"


def load_site_settings(path: Path) -> SiteSettings:
    """The settings in `path`.

    Raises:
        ConfigError: no such file, not TOML, an unknown or missing key, a wrong type or range; one
            line per problem with the key, what was expected and what was found.
    """
    source = path.absolute()
    values = read_toml(source)
    try:
        settings = SiteSettings.model_validate(values, context={FOLDER: str(source.parent)})
    except ValidationError as error:
        raise explain(error, source=str(source), document=values) from error
    settings._source = source
    return settings
