"""StudySpec v1: everything public about a study, and the digest that is its identity everywhere."""

import math
from datetime import date
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, field_validator, model_validator

from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.ids import DIGEST, LABEL, Digest, SiteId
from fedward_common.secagg.refusals import SecAggRefused
from fedward_common.secagg.thresholds import Thresholds
from fedward_common.study.augmentation import Jitter
from fedward_common.study.evaluation import validation_rounds
from fedward_common.study.fusion import Fusion
from fedward_common.study.generation import GAN, GENERATOR
from fedward_common.study.low_rank import LoRa
from fedward_common.study.pseudo_labels import PseudoLabels
from fedward_common.study.registry import (
    AnyData,
    AnyDp,
    AnyRelease,
    AnyTask,
    DpSpec,
    Extensible,
    Strict,
    register,
)
from fedward_common.study.schedule import Schedule
from fedward_common.study.start_weights import StartWeights

Width = Annotated[int, Field(ge=1, le=65536)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Places = Annotated[tuple[int, int], Field(strict=False)]
DigestText = Annotated[str, Field(pattern=DIGEST)]


@register
class DpSgd(DpSpec):
    """Patient-level DP-SGD: the parameters that decide the guarantee and nothing about speed.

    `epsilon` is what the whole study (training and every release) may cost one patient of one site
    at `delta`; `epsilon_is` says by which accountant. `noise_multiplier` is what runs; where a
    study file gives only `epsilon`, signing derives the multiplier and writes it here.
    """

    added: ClassVar[frozenset[str]] = frozenset({"clipping"})

    kind: Literal["dp-sgd"] = "dp-sgd"
    unit: Literal["patient", "family", "record"] = Field(
        default="patient",
        description="family: where the data say who is kin; record: only for a set that does not "
        "say whose a record is (rules 10)",
    )
    placement: Literal["local", "distributed"] = Field(
        default="local",
        description="local: each site adds the whole noise; distributed: the sites' shares add up "
        "to it in a secure sum, one step a round",
    )
    epsilon: Positive
    epsilon_is: Literal["admission", "pld"] = "admission"
    delta: float = Field(gt=0, lt=0.01)
    noise_multiplier: Positive
    clip_norm: Positive
    sampling_probability: float = Field(gt=0, le=1)
    steps: int = Field(ge=1, le=1_000_000)
    max_records_per_patient: int = Field(ge=1, le=1024)
    clipping: Literal["flat", "auto-s"] = Field(
        default="flat", description="auto-s: every patient's gradient is scaled to nearly C"
    )


class TensorSpec(Strict):
    """One tensor of a model: float32, of this shape."""

    name: str = Field(min_length=1, max_length=200)
    shape: tuple[Width, ...] = Field(max_length=8, strict=False)


class ModelSpec(Extensible):
    """A model by its registered name, with its sizes.

    `tensors` are written out when the study is signed: a guard checks updates against them, builds
    no model and runs no plugin (`fedward.models`).
    """

    added: ClassVar[frozenset[str]] = frozenset(
        {
            *("tensors", "outputs", "steps", "shape", "weight_standardisation"),
            *("lora", "fusion", "start", "categories", "dropout"),
        }
    )

    name: str = Field(min_length=1, max_length=64)
    hidden: tuple[Width, ...] = Field(default=(), max_length=16, strict=False)
    outputs: int = Field(default=1, ge=1, le=4096, description="numbers for each record")
    steps: int = Field(default=0, ge=0, le=4096, description="of a time series; 0: none")
    initial_seed: int = Field(default=0, ge=0, lt=2**53)
    tensors: tuple[TensorSpec, ...] = Field(default=(), max_length=4096, strict=False)
    shape: tuple[Width, ...] = Field(
        default=(),
        max_length=4,
        strict=False,
        description="of an image: channels, height, width; of notes: ids of a token, different "
        "ids; of a sequence: numbers of a place, places; of a molecule: numbers of an atom, atoms; "
        "of a variational-autoencoder or gan: numbers of the code",
    )
    weight_standardisation: bool = Field(
        default=False, description="every filter of a convolution centred and of length one"
    )
    lora: LoRa | None = None
    fusion: Fusion | None = Field(default=None, description="of several modalities")
    start: StartWeights | None = None
    categories: tuple[Places, ...] = Field(
        default=(),
        max_length=4096,
        strict=False,
        description="of a gan: the inputs of each category, first and one past the last; filled in",
    )

    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of the hidden units of an mlp left out"
    )

    @model_validator(mode="after")
    def _dropout_of_an_mlp(self) -> "ModelSpec":
        if self.dropout and self.name != "mlp":
            raise ValueError(f"dropout: expected the model mlp, found {self.name}")
        return self

    @property
    def sampled(self) -> int:
        """How many standard normal numbers of its own each record comes with in training."""
        if self.dropout:
            return sum(self.hidden)
        if self.name not in ("variational-autoencoder", GAN) or not self.shape:
            return 0
        return self.shape[0] + sum(end - first + 1 for first, end in self.categories)


class TrainingSpec(Extensible):
    """How a site turns gradients into an update; no effect on privacy.

    `optimizer` and the rates work on noisy gradients. Parameters whose names begin with one of
    `frozen` keep the values that the round starts with.
    """

    added: ClassVar[frozenset[str]] = frozenset(
        {"optimizer", "frozen", "jitter", "schedule", "pseudo_labels"}
    )

    learning_rate: Positive
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    optimizer: Literal["sgd", "adam"] = "sgd"
    frozen: tuple[str, ...] = Field(default=(), max_length=64, strict=False)
    jitter: Jitter | None = None
    schedule: Schedule | None = None
    pseudo_labels: PseudoLabels | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSpec":
        if self.optimizer == "adam" and self.momentum:
            raise ValueError("momentum: expected none with adam, which has its own")
        return self


class _Averaged(Extensible):
    """What the final model is: the last, a mean of the last few, or a moving average (`ema`)."""

    added: ClassVar[frozenset[str]] = frozenset({"ema"})

    average_last: int = Field(default=1, ge=1)
    ema: float = Field(default=0.0, ge=0, lt=1, description="weight of the average so far")

    @model_validator(mode="after")
    def _one_average(self) -> "_Averaged":
        if self.ema and self.average_last > 1:
            raise ValueError("ema: expected average_last = 1 with it, found both")
        return self


class FedAvg(_Averaged):
    """The weighted mean of the sites' models (McMahan et al. 2017)."""

    name: Literal["fedavg"] = "fedavg"


class FedProx(_Averaged):
    """FedAvg with a proximal term mu/2 |w - w_global|^2 at the sites (Li et al. 2020)."""

    name: Literal["fedprox"] = "fedprox"
    mu: Positive


class FedAdam(_Averaged):
    """Adam on the mean update as a pseudo-gradient at the coordinator (Reddi et al. 2021)."""

    name: Literal["fedadam"] = "fedadam"
    learning_rate: Positive
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    tau: Positive = 1e-3


class Scaffold(_Averaged):
    """FedAvg with control variates against the drift of unlike sites (Karimireddy et al. 2020)."""

    name: Literal["scaffold"] = "scaffold"


class FedBN(_Averaged):
    """FedAvg of all but the normalisation layers, which stay each site's own (Li et al. 2021).

    `kept`: how their parameters' names begin. GroupNorm, LayerNorm and the like: BatchNorm mixes
    patients and is refused everywhere.
    """

    name: Literal["fedbn"] = "fedbn"
    kept: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        min_length=1, max_length=1024, strict=False
    )


Aggregation = Annotated[FedAvg | FedProx | FedAdam | Scaffold | FedBN, Field(discriminator="name")]


class SecureAggregation(Strict):
    """How the sites' numbers are added so that nobody sees one of them.

    `mode`: what the coordinator is trusted with; the weaker word has to be written. Of the sites
    `malicious_sites` may work with the coordinator: their noise does not count. `ring_bits`: sums
    are modulo 2^32 or 2^64.
    """

    mode: Literal["malicious", "semi-honest"] = "malicious"
    malicious_sites: int = Field(default=1, ge=1, le=1000)
    ring_bits: Literal[32, 64] = 32


class StudySite(Strict):
    """A hospital in the study.

    `patients` is a public planning constant (its training patients, rounded as the parties agreed),
    not an exact count; keys are digests of public keys (rules 12, 15).
    """

    id: str = Field(pattern=LABEL)
    patients: int = Field(ge=1)
    key_sha256: DigestText
    node_key_sha256: DigestText


class StudySpec(Extensible):
    """Everything public about a study. Frozen; equal studies have equal canonical bytes."""

    added: ClassVar[frozenset[str]] = frozenset(
        {"ethics_valid_until", "secure_sum", "secagg", "stream", "genomic", "jurisdictions"}
    )

    format: Literal["fedward-study/1"] = "fedward-study/1"
    id: str = Field(pattern=LABEL)
    title: str = Field(min_length=1, max_length=200)
    task: AnyTask
    model: ModelSpec
    data: AnyData
    dp: AnyDp
    training: TrainingSpec
    aggregation: Aggregation
    releases: tuple[AnyRelease, ...] = Field(default=(), strict=False)
    rounds: int = Field(ge=1, le=100_000)
    local_steps: int = Field(ge=1, le=100_000)
    quorum: int = Field(ge=1)
    deadline_seconds: float = Field(gt=0, le=7 * 86400)
    sites: tuple[StudySite, ...] = Field(min_length=1, strict=False)
    lead_key_sha256: DigestText
    uncovered_evaluation: Literal[False] = False
    ethics_valid_until: str | None = Field(
        default=None, description="the last day (UTC) of the ethics approval; no round after it"
    )
    secure_sum: bool = Field(
        default=False, description="the coordinator learns sums over the sites and nothing else"
    )
    secagg: SecureAggregation | None = Field(
        default=None, description="how, where the defaults of secure_sum do not fit"
    )

    stream: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="rounds as steps of a phase; auto: where a round is one local step",
    )
    genomic: bool = Field(
        default=False, description="said in so many words: the data are of people's genomes"
    )
    jurisdictions: tuple[Annotated[str, Field(pattern=r"^[A-Z]{2}$")], ...] = Field(
        default=(),
        max_length=64,
        strict=False,
        description="ISO 3166 codes of where the coordinator and every site are, each once",
    )

    @property
    def streams(self) -> bool:
        """Whether the rounds may go as steps of a phase instead of one message each."""
        # A validation is a message, which would end the phase each time.
        single = (
            self.local_steps == 1 and isinstance(self.dp, DpSgd) and not validation_rounds(self)
        )
        return self.stream == "always" or (self.stream == "auto" and single)

    @property
    def canonical(self) -> bytes:
        """The RFC 8785 bytes that are hashed and signed."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> Digest:
        """SHA-256 of `canonical`: the study's identity everywhere; kept for the last few."""
        # By identity, and not in the value: a changed copy would carry the old digest with it.
        known = _DIGESTS.get(id(self))
        if known is not None and known[0] is self:
            return known[1]
        digest = Digest(sha256_hex(self.canonical))
        if len(_DIGESTS) >= MAX_DIGESTS:
            _DIGESTS.clear()
        _DIGESTS[id(self)] = (self, digest)
        return digest

    @property
    def roster_sha256(self) -> Digest:
        """SHA-256 over the ordered sites and their keys (rules 5, 12)."""
        return Digest(sha256_hex(canonical_json([s.model_dump(mode="json") for s in self.sites])))

    @property
    def public_patients(self) -> int:
        """The public constant N of the whole study: the sum of the sites' `patients`."""
        return sum(site.patients for site in self.sites)

    def learning_rate(self, round_number: int, step: int = 0) -> float:
        """The rate of local step 0.. of round 1.., by the study's schedule."""
        training = self.training
        if training.schedule is None:
            return training.learning_rate
        place = (round_number - 1) * self.local_steps + step
        steps = self.rounds * self.local_steps
        return training.learning_rate * training.schedule.part(place, steps=steps)

    def is_frozen(self, tensor: str) -> bool:
        """Whether sites leave the tensor of this name as it came: frozen, the base of an adapter,
        or of a generator, which the coordinator moves.
        """
        lora = self.model.lora
        return (
            tensor.startswith(self.training.frozen)
            or (lora is not None and lora.is_base(tensor))
            or (self.model.name == GAN and tensor.startswith(GENERATOR))
        )

    def site(self, site_id: SiteId) -> StudySite | None:
        """The entry of `site_id`, or None when the study does not include that hospital."""
        return next((s for s in self.sites if s.id == site_id), None)

    def weight(self, site_id: SiteId) -> float:
        """The public aggregation weight of a site: patients / public_patients (rules 6, 13)."""
        site = self.site(site_id)
        return site.patients / self.public_patients if site is not None else 0.0

    @field_validator("ethics_valid_until")
    @classmethod
    def _a_day(cls, value: str | None) -> str | None:
        if value is not None and date.fromisoformat(value).isoformat() != value:
            raise ValueError(f"expected a day such as 2027-03-31, found {value!r}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "StudySpec":
        ids = [site.id for site in self.sites]
        if len(set(ids)) != len(ids):
            raise ValueError("sites: expected every id once")
        keys = [key for site in self.sites for key in (site.key_sha256, site.node_key_sha256)]
        if len(set(keys)) != len(keys):
            raise ValueError("sites: expected every key once")
        if not self.quorum <= len(self.sites):
            raise ValueError(
                f"quorum: expected at most {len(self.sites)} (the sites), found {self.quorum}"
            )
        self._check_secure_sum()
        self._check_genomic()
        training = self.training
        if isinstance(self.aggregation, Scaffold) and (
            training.optimizer != "sgd"
            or training.momentum
            or training.weight_decay
            or training.schedule is not None
        ):
            raise ValueError(
                "training: expected plain sgd with scaffold (no momentum, no weight_decay, no "
                "schedule): its control variates are mean gradients, found more"
            )
        if training.schedule is not None:
            steps = self.rounds * self.local_steps
            if training.schedule.warm_up >= steps:
                raise ValueError(
                    f"training.schedule.warm_up: expected fewer than the study's {steps} steps"
                )
        self._check_stopping()
        if self.aggregation.average_last > self.rounds:
            raise ValueError("aggregation.average_last: expected at most the number of rounds")
        if isinstance(self.dp, DpSgd):
            keyless = bool(getattr(self.data, "no_patient_key", False))
            if (self.dp.unit == "record") != keyless:
                raise ValueError(
                    "dp.unit: expected 'record' exactly where data.no_patient_key = true, found "
                    f"{self.dp.unit!r}; a set that says whose a record is has the unit 'patient'"
                )
            if keyless and self.dp.max_records_per_patient != 1:
                raise ValueError("dp.max_records_per_patient: expected 1 with the unit 'record'")
            if self.dp.steps != self.rounds * self.local_steps:
                raise ValueError(
                    f"dp.steps: expected rounds x local_steps = "
                    f"{self.rounds * self.local_steps}, found {self.dp.steps}"
                )
            self._check_distributed(self.dp)
            limit = 1 / (10 * self.public_patients) if self.public_patients < 10_000 else 1e-5
            if self.dp.delta > limit and not math.isclose(self.dp.delta, limit):
                raise ValueError(
                    f"dp.delta: expected at most {limit:.3g} (1 / (10 N)), found {self.dp.delta}"
                )
        return self

    @property
    def thresholds(self) -> Thresholds:
        """What the secure sum over the study's sites needs and bears (rules 1).

        Raises:
            SecAggRefused: too few sites.
        """
        how = self.secagg or SecureAggregation()
        return Thresholds.of(len(self.sites), malicious_sites=how.malicious_sites, mode=how.mode)

    def _check_stopping(self) -> None:
        validated = validation_rounds(self)
        if validated and validated[-1] >= self.rounds:
            raise ValueError(
                f"releases.early_stopping: expected the last validation before round {self.rounds},"
                f" found it after round {validated[-1]}; the final model is evaluated anyway"
            )
        if validated and self.stream == "always":
            raise ValueError('stream: expected "auto" or "never" with early_stopping')

    def _check_genomic(self) -> None:
        if self.data.is_genomic and not self.genomic:
            raise ValueError(
                f"genomic: expected genomic = true with data of kind {self.data.kind}, found none; "
                "genomes are under rules of their own, and nobody should meet one unawares"
            )
        if list(self.jurisdictions) != sorted(set(self.jurisdictions)):
            raise ValueError("jurisdictions: expected each code once, in the order of the alphabet")
        families = getattr(self.data, "family_key", None) is not None
        if (getattr(self.dp, "unit", "patient") == "family") != families:
            raise ValueError(
                "dp.unit: expected 'family' exactly where data.family_key says who is kin, found "
                "otherwise"
            )

    def _check_secure_sum(self) -> None:
        if not self.secure_sum:
            if self.secagg is not None:
                raise ValueError("secagg: expected secure_sum = true with it, found none")
            return
        try:
            fewest = self.thresholds.fewest_survivors
        except SecAggRefused as error:
            raise ValueError(f"secure_sum: {error}") from error
        if self.quorum < fewest:
            raise ValueError(
                f"quorum: expected at least {fewest} with secure_sum and {len(self.sites)} sites "
                f"(fewer are never unmasked), found {self.quorum}"
            )

    def _check_distributed(self, dp: DpSgd) -> None:
        if dp.placement != "distributed":
            return
        if not self.secure_sum:
            raise ValueError("dp.placement: expected secure_sum = true with distributed noise")
        if self.local_steps != 1:
            raise ValueError(
                "local_steps: expected 1 with distributed noise (a second step would depend on a "
                f"first one without noise), found {self.local_steps}"
            )
        if not isinstance(self.aggregation, FedAvg):
            raise ValueError(
                "aggregation.name: expected fedavg with distributed noise (a round is one step of "
                f"[training] over all sites' patients), found {self.aggregation.name}"
            )


MAX_DIGESTS: Final = 32
_DIGESTS: Final[dict[int, tuple[StudySpec, Digest]]] = {}
"""Studies and their digests by identity; the value keeps a study alive, so no id comes twice."""
