"""`disclosure.json`: what a claim of differential privacy has to disclose, derived from the study.

Every entry says where its value comes from: `configured` (the signed study), `measured` (computed
or run by this installation), `declared` (a person said so) or `missing`. What nobody gave is
missing; no default stands in for it. The JSON schema is in `disclosure.schema.json` beside this.

Sources: NIST SP 800-226 (2025), the items a claim has to name; OpenDP/NIST DP Deployments Registry,
its fields under `registry`; Ponomareva et al. 2023, 5.3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from fedward_common.errors import ConfigError
from fedward_common.privacy.accounting import PLD_INTERVAL, epsilon_admission, epsilon_pld
from fedward_common.privacy.collusion import collusion_facts
from fedward_common.privacy.mechanism import encode_event, study_event
from fedward_common.study.evaluation import EvaluationRelease
from fedward_common.study.harmonisation import SiteHarmonisation
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.statistics import ColumnStatistics, ReleasesOnly, weight
from fedward_common.study.variant_statistics import VariantRelease

FORMAT: Final = "fedward-disclosure/1"
Status = Literal["configured", "measured", "declared", "missing"]


class Entry(BaseModel):
    """A value and where it comes from; null exactly when it is missing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: JsonValue
    status: Status


class Uncovered(BaseModel):
    """Something that no epsilon of this document speaks about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    why: str


class Claim(BaseModel):
    """The items that SP 800-226 asks of a claim."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    definition: Entry
    epsilon: Entry
    epsilon_is: Entry
    delta: Entry
    epsilon_admission: Entry
    epsilon_pld: Entry
    charged_by_site: Entry
    adjacency: Entry
    unit: Entry
    contribution_bound: Entry
    population: Entry
    several_sites: Entry
    noise_added_by: Entry
    collusion: Entry
    distributed_noise: Entry
    sampler: Entry
    mechanism: Entry
    plan: dict[str, Entry]
    releases: tuple[Entry, ...]
    public_constants: Entry
    accountant: Entry
    composition: Entry
    random_numbers: Entry
    floating_point: Entry
    hyper_parameters: Entry
    pre_training: Entry
    utility: Entry
    subgroups: Entry
    empirical_audit: Entry
    access_control: Entry
    ethics_valid_until: Entry
    software: Entry


class Registry(BaseModel):
    """The fields of an entry in the DP Deployments Registry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tier: Entry
    product: Entry
    dp_flavor: Entry
    privacy_loss: dict[str, Entry]
    model: dict[str, Entry]
    accounting: dict[str, Entry]
    implementation: dict[str, Entry]


class Disclosure(BaseModel):
    """The whole document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["fedward-disclosure/1"] = "fedward-disclosure/1"
    study: dict[str, Entry]
    claim: Claim
    uncovered: tuple[Uncovered, ...]
    registry: Registry

    def as_json(self) -> dict[str, Any]:
        """The document as a JSON value."""
        return self.model_dump(mode="json")


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownFacts:
    """What the study does not say. Every one of them may be unknown, and is then missing.

    `charged` (site -> epsilon), `utility` and `audit` are results; the texts are what a person
    declares.
    """

    charged: Mapping[str, float] | None = None
    utility: Mapping[str, Any] | None = None
    audit: Mapping[str, Any] | None = None
    software: Mapping[str, str] | None = None
    hyper_parameters: str | None = None
    pre_training: str | None = None
    subgroups: str | None = None
    justification: str | None = None
    tier: str | None = None
    further_uncovered: Sequence[tuple[str, str]] = field(default=())


def disclosure(study: StudySpec, facts: KnownFacts | None = None) -> Disclosure:
    """The disclosure of a study, as far as the study and `facts` say it.

    Raises:
        ConfigError: the study has a plan or a release without known accounting.
    """
    known = facts or KnownFacts()
    claim = _claim(study, known)
    return Disclosure(
        study={
            "id": configured(study.id),
            "title": configured(study.title),
            "digest": configured(study.digest),
            "task": configured(study.task.kind),
            "sites": configured([site.id for site in study.sites]),
            "lead_key_sha256": configured(study.lead_key_sha256),
            **(
                {
                    "genomic": configured(True),
                    "jurisdictions": configured(list(study.jurisdictions) or None),
                }
                if study.genomic
                else {}
            ),
        },
        claim=claim,
        uncovered=tuple(
            Uncovered(what=what, why=why)
            for what, why in (*_uncovered(study), *known.further_uncovered)
        ),
        registry=_registry(study, claim, known),
    )


def configured(value: Any) -> Entry:
    """A value of the signed study."""
    return Entry(value=value, status="missing" if value is None else "configured")


def measured(value: Any) -> Entry:
    """A value that this installation computed or ran; None means that nobody did."""
    return Entry(value=value, status="missing" if value is None else "measured")


def declared_by_person(value: str | None) -> Entry:
    """What a person said; None means that nobody did."""
    return Entry(value=value, status="missing" if value is None else "declared")


RELATIVES: Final = (
    "relatives of a patient",
    "the unit is one patient; kin are not counted together",
)
GENOMIC_RELATIVES: Final = (
    "relatives of a patient",
    "a genome says much about parents, children, brothers and sisters: k of them in the data may "
    "together lose up to k times this epsilon, and who is not in the data is not covered at all",
)
OTHER_RELATIVES: Final = (
    "relatives who are not in the same family of the table",
    "the unit is one family as the hospital's table knows it; distant or unknown kin, and kin at "
    "another hospital, are not counted together",
)
RELATIVES_BESIDE: Final = (
    OTHER_RELATIVES[0],
    f"{OTHER_RELATIVES[1]}; who has no readable row there, or none with a family, is a family "
    "alone, also where kin of the same person are in it; who is there in several families is not "
    "in the study",
)
UNCOVERED: Final = (
    (
        "earlier and later studies on the same patients",
        "each hospital's ledger adds them up; these figures are of this study alone",
    ),
    (
        "a patient of several hospitals",
        "every hospital counts for itself; the contributions of one person add up",
    ),
    ("a patient under two ids", "each id of a table counts as one person"),
    RELATIVES,
    (
        "what is true of many patients",
        "the guarantee bounds what depends on one patient being in the data",
    ),
    (
        "public constants that people chose",
        "ranges, planned numbers of patients and settings are taken as given",
    ),
    ("time and size of encrypted messages", "an observer of the network sees them"),
)


ADJACENCY: Final = {
    "patient": "add or remove all records of one patient of one site",
    "family": "add or remove all records of one family of one site",
    "record": "add or remove one record; NOT one patient",
}


def _uncovered(study: StudySpec) -> tuple[tuple[str, str], ...]:
    """What no epsilon of the study covers; of genomes, kin in particular."""
    if isinstance(study.data, MultimodalData) and study.data.kin_from is not None:
        own = RELATIVES_BESIDE
    elif getattr(study.dp, "unit", "patient") == "family":
        own = OTHER_RELATIVES
    else:
        own = GENOMIC_RELATIVES if study.genomic else RELATIVES
    return tuple(own if one is RELATIVES else one for one in UNCOVERED)


def _adjacency(study: StudySpec, unit: str) -> str | None:
    """What is added or removed; of families of several modalities, also who says who is kin."""
    said, data = ADJACENCY.get(unit), study.data
    if not isinstance(data, MultimodalData) or data.kin_from is None:
        return said
    return (
        f"{said}, in every modality: of all patients with the same {data.family_key!r} in that "
        f"site's table of the people of modality {data.kin_from!r}"
    )


def _claim(study: StudySpec, facts: KnownFacts) -> Claim:
    dp, event = study.dp, study_event(study)
    known = dp if isinstance(dp, DpSgd | ReleasesOnly) else None
    delta = None if known is None else known.delta
    return Claim(
        definition=configured("(epsilon, delta)-differential privacy"),
        epsilon=configured(known and known.epsilon),
        epsilon_is=configured(known and known.epsilon_is),
        delta=configured(delta),
        epsilon_admission=measured(delta and epsilon_admission([event], delta=delta)),
        epsilon_pld=measured(delta and epsilon_pld(event, delta=delta)),
        charged_by_site=measured(None if facts.charged is None else dict(facts.charged)),
        adjacency=configured(_adjacency(study, known.unit if known else "patient")),
        unit=configured(known and known.unit),
        contribution_bound=configured(_contribution(study)),
        population=configured("every person of each hospital, in the cohort or not"),
        several_sites=configured(
            "covered only up to the contributions of all sites that know the person, which add up"
        ),
        noise_added_by=configured(_noise_added_by(study)),
        collusion=configured(_collusion(study)),
        distributed_noise=measured(collusion_facts(study)),
        sampler=configured(_sampler(study)),
        mechanism=measured(encode_event(event)),
        plan={name: configured(value) for name, value in dp.model_dump(mode="json").items()},
        releases=tuple(_release(study, number) for number in range(len(study.releases))),
        public_constants=configured(
            {
                "patients_by_site": {site.id: site.patients for site in study.sites},
                "rounds": study.rounds,
                "local_steps": study.local_steps,
                "quorum": study.quorum,
            }
        ),
        accountant=measured(
            {
                "name": "dp-accounting",
                "version": version("dp-accounting"),
                "admission": "Renyi divergences at fixed orders",
                "pld": f"privacy loss distributions, pessimistic, interval {PLD_INTERVAL:g}",
            }
        ),
        composition=configured(
            "this study as one pre-declared plan, every release included, at its full length; over "
            "studies each hospital's ledger by a Renyi filter of one fixed order"
        ),
        random_numbers=configured(
            "AES-256 in counter mode under fresh keys of the operating system, and the system's "
            "generator for whole numbers; no seed exists"
        ),
        floating_point=configured(_floating_point(study)),
        hyper_parameters=declared_by_person(facts.hyper_parameters),
        pre_training=_pre_training(study, facts),
        utility=measured(None if facts.utility is None else dict(facts.utility)),
        subgroups=declared_by_person(facts.subgroups),
        empirical_audit=measured(None if facts.audit is None else dict(facts.audit)),
        access_control=configured(
            "each hospital's guard charges before a record is read; only sealed answers leave"
        ),
        ethics_valid_until=configured(study.ethics_valid_until),
        software=measured(None if facts.software is None else dict(facts.software)),
    )


def _pre_training(study: StudySpec, facts: KnownFacts) -> Entry:
    start = study.model.start
    if not isinstance(study.dp, DpSgd):
        return declared_by_person("nothing is trained in this study")
    if start is None:
        return declared_by_person(facts.pre_training)
    which = ", ".join(f"{prefix}*" for prefix in start.tensors) or "all of it"
    said = facts.pre_training or "nobody said what"
    return configured(
        f"the model ({which}) begins with weights of SHA-256 {start.sha256}; whose data they were "
        f"learned from is not covered by this study's epsilon: {said}"
    )


def _contribution(study: StudySpec) -> dict[str, Any] | None:
    dp = study.dp
    if isinstance(dp, DpSgd):
        whose = "family" if dp.unit == "family" else "patient"
        return {
            "records_per_patient": dp.max_records_per_patient,
            "norm": dp.clip_norm,
            "how": f"the mean gradient of a {whose}'s records, scaled to at most this L2 norm",
        }
    if isinstance(dp, ReleasesOnly):
        return {
            "records_per_patient": None,
            "norm": [_sensitivity(r, study) for r in study.releases],
            "how": "one vector per patient, from the mean or most frequent of the own records",
        }
    return None


def _sensitivity(release: object, study: StudySpec) -> str | None:
    if not isinstance(release, ColumnStatistics | VariantRelease):
        return None
    heavy = weight(release, study.data)
    if release.mechanism == "gaussian":
        return f"L2: root of {heavy}"
    return f"L1: {heavy}"


def _noise_added_by(study: StudySpec) -> str | None:
    if isinstance(study.dp, DpSgd | ReleasesOnly) and study.dp.placement == "local":
        return "each hospital adds the whole noise itself, before anything leaves it"
    if isinstance(study.dp, DpSgd | ReleasesOnly):
        return (
            "each hospital's guard adds a share, before masking: of the sum of all that are in it, "
            "at least the whole noise"
        )
    return None


def _collusion(study: StudySpec) -> str | None:
    if isinstance(study.dp, DpSgd | ReleasesOnly) and study.dp.placement == "local":
        return "holds against the coordinator and all other hospitals together"
    if isinstance(study.dp, DpSgd | ReleasesOnly):
        limits = study.thresholds
        return (
            f"holds against the coordinator together with {limits.discounted} of "
            f"{limits.sites} hospitals, with up to {limits.dropouts} lost; against more of them by "
            "distributed_noise.by_collusion; fewer than "
            f"{limits.fewest_survivors} hospitals are never added up"
        )
    return None


def _sampler(study: StudySpec) -> str | None:
    dp = study.dp
    if isinstance(dp, DpSgd):
        return (
            f"Poisson: every patient enters every step by itself with probability "
            f"{dp.sampling_probability:g}, in the run as in the accounting"
        )
    if isinstance(dp, ReleasesOnly):
        return "none: every patient is in every release"
    return None


def _floating_point(study: StudySpec) -> str:
    exact = [
        isinstance(r, ColumnStatistics) and r.mechanism == "discrete-laplace"
        for r in study.releases
    ]
    if exact and all(exact) and isinstance(study.dp, ReleasesOnly):
        return "noise is drawn exactly, in whole numbers"
    if study.secure_sum and getattr(study.dp, "placement", "local") == "distributed":
        return (
            "Gaussian noise is drawn in 64-bit floating point and rounded to whole numbers of at "
            "least 4096 units a deviation; sums of rounded shares differ from one rounded Gaussian "
            "by less than 4e-12 in total variation for each round of 10 million numbers"
        )
    return (
        "Gaussian noise is drawn in 64-bit floating point and rounded before it leaves; attacks on "
        "the floating-point grid are not excluded by proof"
    )


def _release(study: StudySpec, number: int) -> Entry:
    release = study.releases[number]
    facts: dict[str, Any] = release.model_dump(mode="json")
    if isinstance(release, EvaluationRelease):
        facts |= {
            "sensitivity": f"L2: {release.sensitivity:g}",
            "when": _when(release),
        }
    elif isinstance(release, SiteHarmonisation):
        facts |= {
            "sensitivity": _sensitivity(release.statistics, study),
            "when": "once at each hospital, before its first round, for itself: the noised "
            "location and scale never leave it, but the updates of its model depend on them",
        }
    elif isinstance(release, ColumnStatistics | VariantRelease):
        facts |= {"sensitivity": _sensitivity(release, study), "when": "once"}
    else:
        raise ConfigError(f"disclosure: expected a known release, found {release.kind!r}")
    return configured(facts)


def _when(release: EvaluationRelease) -> str:
    if release.stopping is None:
        return "once, the final model, on held-out patients"
    return (
        f"at most {release.times} times on the same held-out patients: after every "
        f"{release.stopping.every} rounds, to end training early, and the final model; all "
        "are in the epsilon, which stays that of every round and every validation"
    )


def _registry(study: StudySpec, claim: Claim, facts: KnownFacts) -> Registry:
    return Registry(
        tier=declared_by_person(facts.tier),
        product=configured({"name": study.title, "study": study.id, "digest": study.digest}),
        dp_flavor=configured("approximate differential privacy"),
        privacy_loss={
            "privacy_unit": claim.unit,
            "privacy_parameters": configured(
                {"epsilon": claim.epsilon.value, "delta": claim.delta.value}
            ),
        },
        model={
            "model": claim.noise_added_by,
            "actors": configured(["coordinator", *(site.id for site in study.sites)]),
            "release_type": configured("one-time"),
            "data_source_type": configured("static"),
            "access_type": configured("non-interactive"),
        },
        accounting={
            "post_processing": configured(
                "averages, optimisers, minimum cell sizes and estimates work on noised numbers only"
            ),
            "composition": claim.composition,
        },
        implementation={
            "pre_processing_eda_hyperparameter_tuning": claim.hyper_parameters,
            "mechanisms": claim.mechanism,
            "justification": declared_by_person(facts.justification),
        },
    )
