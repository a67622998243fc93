"""What a study does to a patient's data, as values: DpEvents, and the text form the ledger keeps.

A mechanism is a value; `accounting` interprets it. The known mechanisms are few and named here:
anything else is refused before it is written or run.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, singledispatch
from typing import Any, Final

from dp_accounting import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.dp_event import DiscreteLaplaceDpEvent

from fedward_common.canonical import canonical_json
from fedward_common.errors import ConfigError
from fedward_common.study.evaluation import EvaluationRelease
from fedward_common.study.harmonisation import SiteHarmonisation
from fedward_common.study.registry import DpSpec, ReleaseSpec
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.statistics import ColumnStatistics, ReleasesOnly
from fedward_common.study.variant_statistics import VariantRelease

MIN_NOISE: Final = 0.05
MAX_NOISE: Final = 1e4
MIN_SAMPLING: Final = 1e-9
MAX_COUNT: Final = 10**9
MAX_DEPTH: Final = 8
"""Inside these bounds both accountants are trusted; outside, a mechanism is refused."""


def dp_sgd_event(*, noise_multiplier: float, sampling_probability: float, steps: int) -> DpEvent:
    """`steps` releases of a Poisson-sampled, clipped sum of patients with Gaussian noise."""
    step = PoissonSampledDpEvent(sampling_probability, GaussianDpEvent(noise_multiplier))
    return SelfComposedDpEvent(step, steps)


@singledispatch
def training_event(dp: DpSpec, *, steps: int) -> DpEvent:
    """What `steps` training steps under `dp` cost. Later kinds of plan register themselves.

    Raises:
        ConfigError: no accounting is known for this kind of plan.
    """
    raise ConfigError(
        f"dp.kind: expected a plan with known accounting, found {dp.kind!r} ({steps} steps)"
    )


@training_event.register
def _(dp: DpSgd, *, steps: int) -> DpEvent:
    return dp_sgd_event(
        noise_multiplier=dp.noise_multiplier,
        sampling_probability=dp.sampling_probability,
        steps=steps,
    )


@singledispatch
def release_event(release: ReleaseSpec) -> DpEvent:
    """What one release besides the model updates costs. Later kinds register themselves.

    Raises:
        ConfigError: no accounting is known for this kind of release.
    """
    raise ConfigError(
        f"releases.kind: expected a release with known accounting, found {release.kind!r}"
    )


@release_event.register
def _(release: EvaluationRelease) -> DpEvent:
    once = evaluation_event(release)
    return once if release.times == 1 else SelfComposedDpEvent(once, release.times)


def evaluation_event(release: EvaluationRelease) -> DpEvent:
    """What one of the release's evaluations costs: each has noise of its own."""
    # One patient moves the counts by at most the release's sensitivity in L2 (privacy/histogram);
    # the noise on each count is the multiplier times that.
    return GaussianDpEvent(release.noise_multiplier)


@release_event.register
def _(release: ColumnStatistics) -> DpEvent:
    if release.mechanism == "gaussian":
        # The multiplier is relative to the L2 sensitivity of the whole vector.
        return GaussianDpEvent(release.noise_multiplier)
    # One patient moves at most this many numbers by 1, each with noise of its own.
    moved = release.counts_weight
    scale = release.noise_multiplier * moved
    return SelfComposedDpEvent(DiscreteLaplaceDpEvent(1.0 / scale, 1), moved)


@release_event.register
def _(release: SiteHarmonisation) -> DpEvent:
    # Drawn once at a site, for itself: what its model updates do with it is post-processing.
    return GaussianDpEvent(release.noise_multiplier)


@release_event.register
def _(release: VariantRelease) -> DpEvent:
    return GaussianDpEvent(release.noise_multiplier)


def study_event(study: StudySpec) -> DpEvent:
    """What the whole study costs a patient of one site: T_max steps and every release (rules 4, 7).

    Raises:
        ConfigError: a plan or a release without known accounting.
    """
    released = [release_event(release) for release in study.releases]
    if isinstance(study.dp, ReleasesOnly):
        return ComposedDpEvent(released)
    training = training_event(study.dp, steps=study.rounds * study.local_steps)
    return ComposedDpEvent([training, *released])


def round_event(study: StudySpec) -> DpEvent:
    """What one round of L local steps costs: L compositions, not one (rules 4)."""
    return training_event(study.dp, steps=study.local_steps)


def alone_study(study: StudySpec) -> StudySpec | None:
    """The study as a site has to count it if all others collude: with its own share of the noise.

    None where each site adds the whole noise: nobody's collusion changes anything then (rules 2).
    """
    if getattr(study.dp, "placement", "local") != "distributed":
        return None
    share = study.thresholds.site_noise_factor

    def less(part: DpSpec | ReleaseSpec) -> DpSpec | ReleaseSpec:
        noise = getattr(part, "noise_multiplier", None)
        return (
            part if noise is None else part.model_copy(update={"noise_multiplier": noise * share})
        )

    releases = tuple(less(release) for release in study.releases)
    return study.model_copy(update={"dp": less(study.dp), "releases": releases})


def alone_event(study: StudySpec) -> DpEvent | None:
    """What `alone_study` costs; None where it is what the study costs anyway."""
    alone = alone_study(study)
    return None if alone is None else study_event(alone)


def encode_event(event: DpEvent) -> str:
    """The canonical JSON text of `event`; equal events give equal text.

    Raises:
        ConfigError: an unknown mechanism (NonPrivate among them) or a parameter out of bounds.
    """
    return canonical_json(_encode(event, depth=0)).decode()


def decode_event(text: str) -> DpEvent:
    """The event in `text`.

    Raises:
        ConfigError: not the text of a known mechanism.
    """
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError("privacy mechanism: expected its JSON text, found none") from error
    return _decode(value, depth=0)


def leaf_counts(events: Sequence[DpEvent]) -> Counter[str]:
    """How often each elementary mechanism runs in `events`, by its text: what a charge consists of.

    Two events with equal counts cost the same, however they are nested.

    Raises:
        ConfigError: an unknown mechanism or a parameter out of bounds.
    """
    counts: Counter[str] = Counter()
    for event in events:
        encode_event(event)  # refuses what is not known before anything is counted
        _count(event, times=1, counts=counts)
    return counts


def _count(event: DpEvent, *, times: int, counts: Counter[str]) -> None:
    if isinstance(event, ComposedDpEvent):
        for part in event.events:
            _count(part, times=times, counts=counts)
    elif isinstance(event, SelfComposedDpEvent):
        _count(event.event, times=times * event.count, counts=counts)
    else:
        counts[_leaf_text(event)] += times


@lru_cache(maxsize=256)
def _leaf_text(event: DpEvent) -> str:
    """`encode_event` of an elementary mechanism that was found known already."""
    return encode_event(event)


def _encode(event: DpEvent, *, depth: int) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise ConfigError(f"privacy mechanism: expected at most {MAX_DEPTH} levels, found more")
    match event:
        case GaussianDpEvent():
            return {"kind": "gaussian", "noise_multiplier": _noise(event.noise_multiplier)}
        case LaplaceDpEvent():
            return {"kind": "laplace", "noise_multiplier": _noise(event.noise_multiplier)}
        case DiscreteLaplaceDpEvent():
            if event.sensitivity != 1:
                raise _unknown(f"discrete Laplace of sensitivity {event.sensitivity}")
            return {"kind": "discrete-laplace", "parameter": _parameter(event.noise_parameter)}
        case PoissonSampledDpEvent():
            # The only sampled mechanism that both accountants support.
            if not isinstance(event.event, GaussianDpEvent):
                raise _unknown(f"Poisson-sampled {type(event.event).__name__}")
            inner = _encode(event.event, depth=depth + 1)
            probability = _probability(event.sampling_probability)
            return {"kind": "poisson-sampled", "sampling_probability": probability, "event": inner}
        case SelfComposedDpEvent():
            inner = _encode(event.event, depth=depth + 1)
            return {"kind": "self-composed", "count": _times(event.count), "event": inner}
        case ComposedDpEvent():
            parts = [_encode(part, depth=depth + 1) for part in event.events]
            return {"kind": "composed", "events": parts}
        case _:
            raise _unknown(type(event).__name__)


def _decode(value: Any, *, depth: int) -> DpEvent:
    if depth > MAX_DEPTH or not isinstance(value, dict):
        raise ConfigError("privacy mechanism: expected a JSON object, found something else")
    fields = {key: item for key, item in value.items() if key != "kind"}
    match value.get("kind"), sorted(fields):
        case "gaussian", ["noise_multiplier"]:
            return GaussianDpEvent(_noise(fields["noise_multiplier"]))
        case "laplace", ["noise_multiplier"]:
            return LaplaceDpEvent(_noise(fields["noise_multiplier"]))
        case "discrete-laplace", ["parameter"]:
            return DiscreteLaplaceDpEvent(_parameter(fields["parameter"]), 1)
        case "poisson-sampled", ["event", "sampling_probability"]:
            inner = _decode(fields["event"], depth=depth + 1)
            if not isinstance(inner, GaussianDpEvent):
                raise _unknown(f"Poisson-sampled {type(inner).__name__}")
            return PoissonSampledDpEvent(_probability(fields["sampling_probability"]), inner)
        case "self-composed", ["count", "event"]:
            inner = _decode(fields["event"], depth=depth + 1)
            return SelfComposedDpEvent(inner, _times(fields["count"]))
        case "composed", ["events"] if isinstance(fields["events"], list):
            return ComposedDpEvent([_decode(part, depth=depth + 1) for part in fields["events"]])
        case kind, _:
            raise _unknown(repr(kind))


def _unknown(found: str) -> ConfigError:
    return ConfigError(
        "privacy mechanism: expected Gaussian, Laplace, discrete Laplace, Poisson-sampled Gaussian "
        f"or compositions of them, found {found}"
    )


def _noise(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError("noise multiplier: expected a number, found something else")
    if not MIN_NOISE <= value <= MAX_NOISE:
        raise ConfigError(f"noise multiplier: expected {MIN_NOISE} to {MAX_NOISE:g}, found {value}")
    return float(value)


def _parameter(value: Any) -> float:
    """The parameter of discrete Laplace noise, one over its scale."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError("discrete Laplace: expected a number, found something else")
    if not 1 / MAX_NOISE <= value <= 1 / MIN_NOISE:
        raise ConfigError(
            f"discrete Laplace: expected a parameter of {1 / MAX_NOISE:g} to {1 / MIN_NOISE:g}, "
            f"found {value}"
        )
    return float(value)


def _probability(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError("sampling probability: expected a number, found something else")
    if not (math.isfinite(value) and MIN_SAMPLING <= value <= 1):
        raise ConfigError(f"sampling probability: expected {MIN_SAMPLING:g} to 1, found {value}")
    return float(value)


def _times(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_COUNT:
        raise ConfigError(f"number of compositions: expected 1 to {MAX_COUNT}, found {value!r}")
    return value
