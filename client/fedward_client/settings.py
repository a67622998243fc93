"""A hospital's site.toml as one frozen value: read once by an entry point and passed on.

Relative paths are relative to the folder of the file. Unknown keys are refused.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from fedward_client.data_entries import (
    FOLDER,
    ClinicalEntry,
    CsvFile,
    DataEntry,
    DrugTargetFile,
    EventFiles,
    FhirFolder,
    FhirServerUrl,
    GenotypeFiles,
    ImageFiles,
    Location,
    MoleculeFile,
    NotesFile,
    OmopUrl,
    Owned,
    ProfileFiles,
    SequenceFiles,
    known_zone_name,
)
from fedward_common.channel.blobs import MAX_BLOB_BYTES
from fedward_common.ids import DIGEST, LABEL
from fedward_common.namespace import IsolationSettings
from fedward_common.study.files import explain, read_toml
from fedward_common.study.fusion import ModalityName
from fedward_common.study.registry import Strict
from fedward_common.trust.statements import PERSON

DOMAIN_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
HOURS = r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"
PROXY = r"^http://(\[[0-9A-Fa-f:]+\]|[^\s:/@]+):\d{1,5}$"
USER_NAME = r"^([a-z_][a-z0-9_-]{0,31}|#[1-9][0-9]{0,8})$"


Port = Annotated[int, Field(ge=1, le=65535)]
Epsilon = Annotated[float, Field(gt=0, allow_inf_nan=False)]
DigestText = Annotated[str, Field(pattern=DIGEST)]
UserName = Annotated[str, Field(pattern=USER_NAME)]
Output = Literal["update", "evaluation", "statistics"]
REMOVED = ("approved_studies", "auto_approve", "trusted_leads")


class CoordinatorAddress(Strict):
    """Where the federation's edge listens: the one address a site connects to.

    A proxy stands before it only if it is named here; no variable of the environment names one.
    """

    address: str = Field(pattern=r"^[^\s:/]+:\d{1,5}$", description="host:port")
    server_name: str | None = Field(
        default=None, pattern=DOMAIN_NAME, description="in its certificate, if not the host"
    )
    proxy: str | None = Field(
        default=None,
        pattern=PROXY,
        description="http://host:port of an HTTP proxy that passes CONNECT",
    )
    proxy_auth_file: Location | None = Field(
        default=None, description="user:password for it, in a private file"
    )

    @model_validator(mode="after")
    def _proxy_named(self) -> "CoordinatorAddress":
        if self.proxy_auth_file is not None and self.proxy is None:
            raise ValueError("proxy_auth_file: expected proxy beside it, found none")
        return self


class Folders(Strict):
    """Where the guard keeps what must survive (`state`) and where its sockets are (`run`)."""

    state: Location = Field(default=Path("state"), validate_default=True)
    run: Location = Field(default=Path("run"), validate_default=True)


class KeyPaths(Strict):
    """The site's keys and certificates. Private keys are 0600 and belong to the service user.

    With `passphrase_file` they are encrypted under the one line in that file, which may be a
    systemd credential.
    """

    tls_certificate: Location
    tls_key: Location
    ca: Location
    node_key: Location
    signing_key: Location
    secagg_key: Location | None = None
    passphrase_file: Location | None = None


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

    A user is a name of this machine, or #UID where it has no account.
    Without names, worker and gateway are the guard's own user, and so is who approves and pauses
    (`admin_user`: approvals are signed by people all the same). With names, `group` is a group of
    all these users: the sockets are then 0660 for that group instead of 0600.
    """

    guard_user: UserName | None = None
    worker_user: UserName | None = None
    gateway_user: UserName | None = None
    node_user: UserName | None = None
    admin_user: UserName | None = None
    group: UserName | None = None
    reply_hours: float = Field(default=24.0, gt=0, le=24)
    reply_quota_bytes: int = Field(default=2 << 30, ge=1 << 20)

    @model_validator(mode="after")
    def _reachable(self) -> "GuardSettings":
        users = (self.guard_user, self.worker_user, self.gateway_user, self.node_user)
        if any((*users, self.admin_user)) and self.group is None:
            raise ValueError("expected a group that the site's users share, found none")
        return self


class Approver(Strict):
    """A person of this hospital who may approve, revoke, pause and resume, and their key.

    `fedward-client approver new` makes the key and prints these two lines.
    """

    name: str = Field(pattern=PERSON)
    public_key: DigestText


class PolicyRules(Strict):
    """The hospital's limits. Every limit means the admission figure (RDP filter), the larger one.

    `delta` is the largest delta a study may declare; `max_epsilon_per_study` holds at the study's
    own delta, `max_epsilon_total` (all studies of this hospital together) at `delta` itself.

    `allowed_outputs` is what may leave at all; evaluation and statistics each need their own
    `allow_...` besides. `allowed_hours` are times of day in `time_zone`, such as "20:00-06:00";
    none means any hour. Bytes are counted as they leave, per round of a study and per UTC day.
    """

    allowed_tasks: tuple[str, ...] = Field(min_length=1, strict=False)
    allowed_outputs: tuple[Output, ...] = Field(
        default=("update", "evaluation", "statistics"), strict=False
    )
    min_noise: float = Field(gt=0, allow_inf_nan=False, description="smallest noise multiplier")
    max_epsilon_per_study: Epsilon
    max_epsilon_total: Epsilon
    max_epsilon_if_all_others_collude: Epsilon | None = Field(
        default=None,
        description="as max_epsilon_total, if of distributed noise only the own share counts",
    )
    require_secure_sum: bool = Field(
        default=False, description="only studies whose coordinator sees sums over hospitals"
    )
    allow_semi_honest: bool = Field(
        default=False, description="secure sums that trust the coordinator to follow the protocol"
    )
    genomic_jurisdictions: tuple[Annotated[str, Field(pattern=r"^[A-Z]{2}$")], ...] | None = Field(
        default=None,
        strict=False,
        description="genomic studies only where coordinator and all sites are in these countries",
    )
    delta: float = Field(gt=0, lt=0.01)
    approved_bundles: tuple[DigestText, ...] = Field(default=(), strict=False)
    allow_evaluation: bool = False
    max_evaluations: int = Field(
        default=1, ge=1, le=1001, description="of one study: validations, and the final model"
    )
    allow_statistics: bool = False
    allow_phases: bool = Field(
        default=True, description="steps of a study in one stream instead of a message each"
    )
    min_cell_size: int = Field(default=10, ge=1, description="smallest count reported by itself")
    allowed_hours: tuple[Annotated[str, Field(pattern=HOURS)], ...] = Field(
        default=(), strict=False
    )
    time_zone: str = "UTC"
    max_bytes_per_round: int = Field(default=1 << 30, ge=1)
    max_bytes_per_day: int = Field(default=8 << 30, ge=1)
    max_blob_bytes: int = Field(
        default=MAX_BLOB_BYTES, ge=1 << 20, le=MAX_BLOB_BYTES, description="of one model coming in"
    )
    paused: bool = Field(default=False, description="stays paused whatever anyone says")

    @property
    def outputs(self) -> frozenset[str]:
        """What may leave: allowed as an output, and where it needs one, with its own yes."""
        needed = {"evaluation": self.allow_evaluation, "statistics": self.allow_statistics}
        return frozenset(output for output in self.allowed_outputs if needed.get(output, True))

    @model_validator(mode="before")
    @classmethod
    def _not_removed(cls, values: Any) -> Any:
        found = [key for key in REMOVED if isinstance(values, dict) and key in values]
        if found:
            raise ValueError(
                f"{found[0]}: expected no such key: a study is approved by a named person's "
                "signature. Remove it, list the person under [[approvers]] and run "
                "`fedward-client studies approve`"
            )
        return values

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        return known_zone_name(name)

    @model_validator(mode="after")
    def _consistent(self) -> "PolicyRules":
        if self.max_epsilon_per_study > self.max_epsilon_total:
            raise ValueError(
                f"max_epsilon_per_study: expected at most max_epsilon_total = "
                f"{self.max_epsilon_total}, found {self.max_epsilon_per_study}"
            )
        colluding = self.max_epsilon_if_all_others_collude
        if colluding is not None and colluding < self.max_epsilon_total:
            raise ValueError(
                f"max_epsilon_if_all_others_collude: expected at least max_epsilon_total = "
                f"{self.max_epsilon_total}, found {colluding}: a share of noise never protects more"
            )
        return self


class SiteSettings(Strict):
    """Everything in site.toml."""

    site: str = Field(pattern=LABEL)
    federation: str = Field(pattern=DOMAIN_NAME, description="the SPIFFE trust domain")
    coordinator: CoordinatorAddress
    folders: Folders = Field(default_factory=dict, validate_default=True)
    keys: KeyPaths
    data: tuple[DataEntry, ...] = Field(min_length=1, strict=False)
    absent_modalities: tuple[ModalityName, ...] = Field(
        default=(),
        max_length=64,
        strict=False,
        description="of studies of several modalities, those that this hospital does not have",
    )
    exclusions: Location | None = Field(
        default=None, description="patients who object: a header `patient_id`, one id per line"
    )
    approvers: tuple[Approver, ...] = Field(default=(), strict=False)
    policy: PolicyRules
    ports: LoopbackPorts = LoopbackPorts()
    guard: GuardSettings = GuardSettings()
    isolation: IsolationSettings = IsolationSettings()
    device: Literal["cpu", "cuda"] = "cpu"
    backend: Literal["auto", "bookkeeping", "opacus", "loop"] = "auto"
    max_records_per_chunk: int = Field(
        default=4096,
        ge=1,
        description="computed at once; `loop` adds up a patient with more from several passes",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the model's forward pass; clipping is always wider"
    )
    replicas: int = Field(
        default=1, ge=1, le=64, description="GPUs, or threads on the CPU, that share the patients"
    )

    _source: Path = PrivateAttr(default=Path("site.toml"))

    @field_validator("approvers")
    @classmethod
    def _each_once(cls, approvers: tuple[Approver, ...]) -> tuple[Approver, ...]:
        for values in ([a.name for a in approvers], [a.public_key for a in approvers]):
            if len(set(values)) != len(values):
                raise ValueError("expected every name and every key once, found one twice")
        return approvers

    @model_validator(mode="after")
    def _exclusions_by_the_right_column(self) -> "SiteSettings":
        if self.exclusions is not None and any(
            key is None
            for key in (
                *(table.patient_key for table in self.tables),
                *(one.patient_key for one in self.owned),
            )
        ):
            raise ValueError(
                "exclusions: expected patient_key in every [[data]] beside it, found none: a study "
                "could name another column, in which nobody of the list stands"
            )
        return self

    @property
    def tables(self) -> tuple[CsvFile, ...]:
        """The [[data]] that are CSV tables."""
        return tuple(one for one in self.data if isinstance(one, CsvFile))

    @property
    def clinical(self) -> tuple[ClinicalEntry, ...]:
        """The [[data]] that are sources of clinical events."""
        return tuple(one for one in self.data if isinstance(one, ClinicalEntry))

    @property
    def images(self) -> tuple[ImageFiles, ...]:
        """The [[data]] that are images."""
        return tuple(one for one in self.data if isinstance(one, ImageFiles))

    @property
    def notes(self) -> tuple[NotesFile, ...]:
        """The [[data]] that are notes."""
        return tuple(one for one in self.data if isinstance(one, NotesFile))

    @property
    def owned(self) -> tuple[Owned, ...]:
        """The [[data]] of records that say whose they are, or that nobody knows."""
        return tuple(one for one in self.data if isinstance(one, Owned))

    @property
    def genotypes(self) -> tuple[GenotypeFiles, ...]:
        """The [[data]] that are genotypes."""
        return tuple(one for one in self.data if isinstance(one, GenotypeFiles))

    @property
    def data_files(self) -> tuple[Path, ...]:
        """The files of [[data]] that the worker opens; the files of a folder are not listed."""
        found: list[Path | None] = []
        for one in self.data:
            match one:
                case CsvFile() | FhirFolder() | ImageFiles() | MoleculeFile():
                    found.append(one.path)
                case NotesFile():
                    found += [one.path, one.vocabulary]
                case ProfileFiles():
                    found.append(one.path)
                    for matrix in one.matrices:
                        found += [matrix.path, matrix.mapping]
                case SequenceFiles() | DrugTargetFile():
                    found += [one.path, one.fasta]
                case GenotypeFiles():
                    found += [one.path, one.people]
                    beside = {".bed": (".bim", ".fam"), ".pgen": (".pvar", ".psam")}
                    ends = beside.get(one.path.suffix, ())
                    found += [one.path.with_suffix(end) for end in ends]
                case EventFiles():
                    found += [one.patients, one.events]
                case OmopUrl():
                    found.append(one.url_file)
                case FhirServerUrl():
                    found += [one.token_file, one.ca]
        return tuple(path for path in found if path is not None)

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
    def fleet_socket(self) -> Path:
        """Where the gateway listens for SuperNode: a bridge in SuperNode's network leads there."""
        return self.folders.run / "fleet" / "fleet.sock"

    @property
    def spool(self) -> Path:
        """Where the gateway keeps replies while the coordinator is away."""
        return self.folders.state / "spool"

    @property
    def pulse_file(self) -> Path:
        """What the gateway touches while SuperNode asks for work: SuperNode's heartbeat."""
        return self.fleet_socket.with_name("supernode.pulse")

    @property
    def phase_socket(self) -> Path:
        """Where the gateway takes the answers to the steps of a phase from the worker."""
        return self.folders.run / "phase" / "phase.sock"

    @property
    def blob_folder(self) -> Path:
        """The gateway's own: models that come in lie there, in files without names."""
        return self.folders.state / "blobs"

    @property
    def admin_socket(self) -> Path:
        """Where people's signed approvals reach the guard."""
        return self.folders.run / "admin.sock"

    @property
    def approvals_folder(self) -> Path:
        """The signed statements of this site's approvers, one file each."""
        return self.folders.state / "approvals"

    @property
    def studies_folder(self) -> Path:
        """The signed studies that the guard was asked to run or that were approved."""
        return self.folders.state / "studies"

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
