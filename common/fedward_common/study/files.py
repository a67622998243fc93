"""Files that people write, as values: study.toml, and readable errors for any settings file.

A wrong key, type or range gives one line that names the key, what was expected and what was found.
Unknown keys are refused. What cannot be in a study file (keys of sites and lead) comes from the
signer; what may be left out (steps, and one of epsilon and noise) is derived here.
"""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from fedward_common.errors import ConfigError
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.drug_target import DrugTargetData
from fedward_common.study.generation import GAN
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.imaging import Pictures
from fedward_common.study.inputs import inputs_of
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.multimodal import MultimodalData, parts_of
from fedward_common.study.notes import NotesData
from fedward_common.study.registry import DpSpec, Variant
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.statistics import (
    NO_MODEL,
    FederatedStatistics,
    ReleasesOnly,
    is_statistics,
    statistics_releases,
)
from fedward_common.study.tabular import TabularData
from fedward_common.study.tasks import KNOWN_TASKS, check_task

Part = str | int
Unknown = Literal["epsilon", "noise_multiplier"]
Resolve = Callable[[StudySpec, Unknown], float]
"""(study whose `dp` holds a placeholder for one number, that number's name) -> the number."""

PLACEHOLDER: Final = 1.0
MAX_FOUND: Final = 60
SIGNER_KEYS: Final = ("key_sha256", "node_key_sha256")


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteKeys:
    """SHA-256 digests of a site's Ed25519 signing key and of its Flower node key (rules 12)."""

    key_sha256: str
    node_key_sha256: str


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: no such file, not readable, not UTF-8 or not TOML (with the line).
    """
    try:
        return _parse_toml(path.read_text(encoding="utf-8"), source=str(path))
    except OSError as error:
        raise ConfigError(
            f"{path}: expected a readable file, found none ({error.strerror}); check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text, found other bytes") from error


def parse_study(
    text: str,
    *,
    source: str,
    keys: Mapping[str, SiteKeys],
    lead_key_sha256: str,
    resolve: Resolve | None = None,
) -> StudySpec:
    """The study that a study.toml with these contents describes, complete and ready to be signed.

    `source` names the file in errors. `keys` are the sites' key digests as the parties confirmed
    them; `lead_key_sha256` is the signer's. Of `dp.epsilon` and `dp.noise_multiplier` the file
    gives exactly one; `resolve` derives the other (default: `derive`, the accountants). A study of
    statistics gives `dp.epsilon`, or every release's noise, or both, which then have to agree; what
    only training needs (model, rounds, ...) is filled in for it.

    Raises:
        ConfigError: one line per problem: the key, what was expected, what was found.
    """
    document = _parse_toml(text, source=source)
    unknown = _complete(document, source=source, keys=keys, lead_key_sha256=lead_key_sha256)
    study = _validated(document, source=source)
    if shapes := _check_model(study, source=source):
        document["model"]["tensors"] = [{"name": n, "shape": list(s)} for n, s in shapes.items()]
        study = _validated(document, source=source)
    try:
        if is_statistics(study):
            statistics_releases(study)
        if unknown is None:
            _check_declared(study)
            return study
        if is_statistics(study) and unknown == "noise_multiplier":
            number = derive(study, unknown)
            document["releases"] = [
                {**release, unknown: number} for release in document["releases"]
            ]
        else:
            document["dp"][unknown] = (resolve or derive)(study, unknown)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    return _validated(document, source=source)


def derive(study: StudySpec, unknown: Unknown) -> float:
    """What the file leaves out: the noise that keeps the whole study (training and every release)
    within `dp.epsilon`, or the epsilon of the given noise, rounded up to four decimals.

    Raises:
        ConfigError: a plan without accounting, no noise is enough, or epsilon is not finite.
    """
    # Accountants cost a second to import; processes that only read their settings never need them.
    from fedward_common.privacy import accounting, mechanism  # noqa: PLC0415

    dp = study.dp
    if not isinstance(dp, DpSgd | ReleasesOnly):
        raise ConfigError(f"dp.kind: expected a plan with known accounting, found {dp.kind!r}")
    if unknown == "noise_multiplier" and isinstance(dp, ReleasesOnly):
        return _common_noise(study, dp)
    if unknown == "noise_multiplier" and isinstance(dp, DpSgd):
        return accounting.calibrate_noise_multiplier(
            epsilon=dp.epsilon,
            epsilon_is=dp.epsilon_is,
            delta=dp.delta,
            sampling_probability=dp.sampling_probability,
            steps=dp.steps,
            releases=study.releases,
        )
    event = mechanism.study_event(study)
    epsilon = accounting.epsilon_as(dp.epsilon_is, event, delta=dp.delta)
    if not math.isfinite(epsilon):
        raise ConfigError(
            f"dp.noise_multiplier: expected enough noise for a finite epsilon, found "
            f"{dp.noise_multiplier if isinstance(dp, DpSgd) else 'too little in the releases'}"
        )
    # The same margin as calibration: another machine's last digits stay below the declared figure.
    return math.ceil(epsilon * (1 + accounting.MARGIN) * 10_000) / 10_000


def _check_declared(study: StudySpec) -> None:
    """Returns when a study whose file gives both numbers costs no more than it declares."""
    from fedward_common.privacy import accounting, mechanism  # noqa: PLC0415 - as in `derive`

    dp = study.dp
    if not isinstance(dp, ReleasesOnly):
        return
    real = accounting.epsilon_as(dp.epsilon_is, mechanism.study_event(study), delta=dp.delta)
    if not real <= dp.epsilon:
        raise ConfigError(
            f"dp.epsilon: expected at least what the releases cost ({real:.4g} at delta "
            f"{dp.delta:g}, {dp.epsilon_is}), found {dp.epsilon}"
        )


def _common_noise(study: StudySpec, dp: ReleasesOnly) -> float:
    """One noise multiplier for every release of a statistics study, so that all cost `epsilon`."""
    from dp_accounting import ComposedDpEvent  # noqa: PLC0415 - as in `derive`

    from fedward_common.privacy import accounting, mechanism  # noqa: PLC0415

    releases = statistics_releases(study)

    def event(noise: float) -> ComposedDpEvent:
        at = [release.model_copy(update={"noise_multiplier": noise}) for release in releases]
        return ComposedDpEvent([mechanism.release_event(release) for release in at])

    # The scale of a discrete Laplace release is its multiplier times its weight: both in bounds.
    heaviest = max(release.counts_weight for release in releases)
    found = accounting.smallest_noise(
        event,
        epsilon=dp.epsilon,
        epsilon_is=dp.epsilon_is,
        delta=dp.delta,
        high=mechanism.MAX_NOISE / max(1, heaviest),
    )
    if found is None:
        raise ConfigError(
            f"dp.epsilon: expected enough for {len(releases)} releases with noise multipliers of "
            f"at most {mechanism.MAX_NOISE:g}, found {dp.epsilon}. Raise it or release less"
        )
    return found


def explain(
    error: ValidationError, *, source: str, document: Mapping[str, Any] | None = None
) -> ConfigError:
    """`error` for the person who wrote the file: one line per problem with key, expected, found.

    `document` is what was validated; with it, entries of lists are named by their `id` or `name`.
    """
    lines = [
        f"{source}: {_path(location, document, kind=details['type'])}: {_problem(details)}"
        for location, details in _flatten(error, ())
    ]
    return ConfigError("\n".join(dict.fromkeys(lines)))


def _parse_toml(text: str, *, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{source}: expected TOML, found an error: {error}") from error


def _validated(document: dict[str, Any], *, source: str) -> StudySpec:
    try:
        return StudySpec.model_validate(document)
    except ValidationError as error:
        raise explain(error, source=source, document=document) from error


def _check_model(study: StudySpec, *, source: str) -> dict[str, tuple[int, ...]]:
    """The tensors of the model that the study learns, by name; none where it learns none."""
    # As `derive`: torch costs seconds, and only who signs a study comes this way.
    from fedward_common.models.registry import model_shapes  # noqa: PLC0415
    from fedward_common.models.start import start_shapes  # noqa: PLC0415
    from fedward_common.study.units import check_unit  # noqa: PLC0415

    learned = TabularData | ClinicalData | Pictures | NotesData | LabelledRows | Genotypes
    if not isinstance(study.data, learned | MultimodalData) or is_statistics(study):
        return {}
    try:
        if type(study.task) in KNOWN_TASKS:
            check_task(study)
        shapes = model_shapes(study.model, study.data.input_size)
        start_shapes(study.model, study.data.input_size)
        for part in parts_of(study.data):
            for unit in part.units if isinstance(part, ClinicalData) else ():
                check_unit(unit)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    if study.model.tensors and {t.name: t.shape for t in study.model.tensors} != shapes:
        raise ConfigError(
            f"{source}: model.tensors: expected those of the model {study.model.name!r} as it is "
            "built here, found others; leave them out, they are filled in"
        )
    return shapes


def _complete(
    document: dict[str, Any], *, source: str, keys: Mapping[str, SiteKeys], lead_key_sha256: str
) -> Unknown | None:
    """Fills in what a study file leaves out; gives the name of the number still to be derived."""
    if "lead_key_sha256" in document:
        raise _refused(source, "lead_key_sha256")
    document["lead_key_sha256"] = lead_key_sha256
    sites = document.get("sites")
    if isinstance(sites, list):
        document["sites"] = [_with_keys(site, source=source, keys=keys) for site in sites]
    dp = document.get("dp")
    _place_noise(document, dp, source=source)
    _count_inputs(document)
    _find_categories(document)
    if _kind(document.get("task")) == _kind_of(FederatedStatistics):
        return _complete_statistics(document, source=source)
    if not isinstance(dp, dict) or DpSpec.variants.get(dp.get("kind", "")) is not DpSgd:
        return None
    rounds, local_steps = document.get("rounds"), document.get("local_steps")
    if "steps" not in dp:
        dp["steps"] = 1  # where rounds or local_steps are wrong, their own error is enough
        if isinstance(rounds, int) and isinstance(local_steps, int):
            dp["steps"] = rounds * local_steps
    given = [name for name in ("epsilon", "noise_multiplier") if name in dp]
    if len(given) != 1:
        found = "both" if given else "neither"
        raise ConfigError(
            f"{source}: dp: expected exactly one of epsilon and noise_multiplier, found {found}; "
            "the other is derived from it"
        )
    unknown: Unknown = "epsilon" if given == ["noise_multiplier"] else "noise_multiplier"
    dp[unknown] = PLACEHOLDER
    return unknown


def _place_noise(document: dict[str, Any], dp: object, *, source: str) -> None:
    """Takes the word `noise` of a study file for `dp.placement`; distributed means secure sums."""
    if not isinstance(dp, dict):
        return
    if "noise" in dp and "placement" in dp:
        raise ConfigError(f"{source}: dp: expected noise or placement, found both")
    if "noise" in dp:
        dp["placement"] = dp.pop("noise")
    if dp.get("placement") == "distributed":
        document.setdefault("secure_sum", True)


def _count_inputs(document: dict[str, Any]) -> None:
    """Fills in the inputs of each encoder of a model of several modalities from its modality."""
    model = document.get("model")
    fusion = model.get("fusion") if isinstance(model, dict) else None
    encoders = fusion.get("encoders") if isinstance(fusion, dict) else None
    if not isinstance(fusion, dict) or not isinstance(encoders, list):
        return
    data = document.get("data")
    pairs = _kind(data) == _kind_of(DrugTargetData)
    joined: type[MultimodalData | DrugTargetData] = DrugTargetData if pairs else MultimodalData
    try:
        parts = joined.model_validate(data).parts
    except ValidationError:
        return  # the study's own validation says what is wrong
    fusion["encoders"] = [
        {"inputs": parts[one["modality"]].input_size, **one}
        if isinstance(one, dict) and one.get("modality") in parts
        else one
        for one in encoders
    ]


def _find_categories(document: dict[str, Any]) -> None:
    """Fills in which inputs of a generator are categories from the columns of its table."""
    model, data = document.get("model"), document.get("data")
    if not isinstance(model, dict) or model.get("name") != GAN or "categories" in model:
        return
    try:
        table = TabularData.model_validate(data)
    except ValidationError:
        return  # as above
    model["categories"] = [list(pair) for pair in inputs_of(table).categories]


def _complete_statistics(document: dict[str, Any], *, source: str) -> Unknown | None:
    """As `_complete`, for a study without training: fills in what only training needs."""
    releases = document.get("releases")
    count = len(releases) if isinstance(releases, list) else 1
    for key, value in (
        ("model", {"name": NO_MODEL}),
        ("training", {"learning_rate": 1.0}),
        ("aggregation", {"name": "fedavg"}),
        ("rounds", count),
        ("local_steps", 1),
    ):
        if key in document:
            raise ConfigError(
                f"{source}: {key}: expected no such key in a study of statistics, found one; "
                "remove it: nothing is trained"
            )
        document[key] = value
    dp = document.get("dp")
    if not isinstance(dp, dict) or _kind(dp) != _kind_of(ReleasesOnly):
        return None
    tables = [r for r in releases if isinstance(r, dict)] if isinstance(releases, list) else []
    noisy = ["noise_multiplier" in release for release in tables]
    if noisy and all(noisy):
        if "epsilon" in dp:
            return None
        dp["epsilon"] = PLACEHOLDER
        return "epsilon"
    if any(noisy) or "epsilon" not in dp:
        raise ConfigError(
            f"{source}: releases: expected dp.epsilon, from which one noise_multiplier for every "
            "release is derived, or a noise_multiplier in each release, found neither"
        )
    for release in tables:
        release["noise_multiplier"] = PLACEHOLDER
    return "noise_multiplier"


def _kind(table: object) -> object:
    return table.get("kind") if isinstance(table, dict) else None


def _kind_of(variant: type[Variant]) -> object:
    return variant.model_fields["kind"].default


def _with_keys(site: object, *, source: str, keys: Mapping[str, SiteKeys]) -> object:
    if not isinstance(site, dict):
        return site
    for name in SIGNER_KEYS:
        if name in site:
            raise _refused(source, f"sites.{name}")
    site_id = site.get("id")
    if not isinstance(site_id, str):
        return {**site, **dict.fromkeys(SIGNER_KEYS, "0" * 64)}
    if site_id not in keys:
        raise ConfigError(
            f"{source}: sites[{site_id}]: expected a site whose keys the signer has "
            f"({', '.join(sorted(keys)) or 'none'}), found another; enrol it first"
        )
    known = keys[site_id]
    return {**site, "key_sha256": known.key_sha256, "node_key_sha256": known.node_key_sha256}


def _refused(source: str, key: str) -> ConfigError:
    return ConfigError(
        f"{source}: {key}: expected no key digest in a study file, found one; remove it: "
        "the signer fills in the digests that the parties confirmed"
    )


def _flatten(
    error: ValidationError, prefix: tuple[Part, ...]
) -> list[tuple[tuple[Part, ...], dict[str, Any]]]:
    """Every problem with its full path; variants of a tagged union nest their own errors."""
    problems: list[tuple[tuple[Part, ...], dict[str, Any]]] = []
    for details in error.errors(include_url=False):
        location = (*prefix, *details["loc"])
        inner = details.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):
            problems += _flatten(inner, location)
        else:
            problems.append((location, dict(details)))
    return problems


def _path(location: Sequence[Part], document: Mapping[str, Any] | None, *, kind: str) -> str:
    """`data.columns[age].low`; the tags that pydantic puts between are left out where known."""
    text = ""
    here: object = document
    for number, part in enumerate(location):
        if isinstance(part, int):
            here = here[part] if isinstance(here, list) and part < len(here) else None
            text += f"[{_entry_name(here) or f'#{part + 1}'}]"
            continue
        absent = kind == "missing" and number == len(location) - 1
        if isinstance(here, Mapping) and part not in here and not absent:
            continue  # the tag of a tagged union, not a key of the file
        here = here.get(part) if isinstance(here, Mapping) else None
        text += f".{part}" if text else part
    return text or "the file"


def _entry_name(entry: object) -> str:
    if isinstance(entry, Mapping):
        for key in ("id", "name"):
            if isinstance(entry.get(key), str):
                return str(entry[key])
    return ""


_EXPECTED: Final[dict[str, str]] = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a table",
    "dict_type": "a table",
    "model_attributes_type": "a table",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "union_tag_invalid": "one of {expected_tags} as {discriminator}",
    "union_tag_not_found": "a table with the key {discriminator}",
    "string_pattern_mismatch": "text of the form {pattern}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
}


def _problem(details: Mapping[str, Any]) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "missing":
        return "expected a value, found none; add this key"
    if kind == "extra_forbidden":
        return "expected only known keys, found this one; remove it or correct its spelling"
    if kind == "value_error":
        return str(context.get("error", details["msg"]))
    template = _EXPECTED.get(kind)
    numbers = {key: f"{value:g}" for key, value in context.items() if isinstance(value, float)}
    expected = template.format(**{**context, **numbers}) if template else str(details["msg"])
    return f"expected {expected}, found {_found(details['input'])}"


def _found(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= MAX_FOUND else f"{text[:MAX_FOUND]}..."
