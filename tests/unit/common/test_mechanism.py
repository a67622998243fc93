"""Mechanisms as values: what they are built from, their text, and what is not known."""

import pytest
from dp_accounting import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    NonPrivateDpEvent,
    NoOpDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
    UnsupportedDpEvent,
    ZCDpEvent,
)
from dp_accounting.dp_event import DiscreteLaplaceDpEvent

from fedward_common.errors import ConfigError
from fedward_common.privacy.mechanism import (
    decode_event,
    encode_event,
    leaf_counts,
    release_event,
    round_event,
    study_event,
    training_event,
)
from fedward_common.study.evaluation import BinnedScores
from fedward_common.study.registry import DpSpec, ReleaseSpec
from tests.support.guard_site import a_study

STEP = PoissonSampledDpEvent(0.1, GaussianDpEvent(3.0))


def test_training_is_one_composition_per_step() -> None:
    study = a_study()

    assert training_event(study.dp, steps=7) == SelfComposedDpEvent(STEP, 7)
    assert round_event(study) == SelfComposedDpEvent(STEP, study.local_steps)


def test_a_release_of_binned_scores_is_one_gaussian() -> None:
    assert release_event(BinnedScores(bins=5, noise_multiplier=8.0)) == GaussianDpEvent(8.0)


def test_a_study_is_all_its_steps_and_every_release() -> None:
    study = a_study(rounds=5, local_steps=4)

    event = study_event(study)

    assert leaf_counts([event]) == {
        encode_event(STEP): 20,
        encode_event(GaussianDpEvent(20.0)): 1,
    }


def test_plans_and_releases_without_accounting_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dp\.kind"):
        training_event(DpSpec(kind="another"), steps=1)
    with pytest.raises(ConfigError, match=r"releases\.kind"):
        release_event(ReleaseSpec(kind="another"))


KNOWN = [
    GaussianDpEvent(1.5),
    LaplaceDpEvent(2.0),
    STEP,
    SelfComposedDpEvent(STEP, 1000),
    ComposedDpEvent([STEP, GaussianDpEvent(4.0), ComposedDpEvent([LaplaceDpEvent(1.0)])]),
]


@pytest.mark.parametrize("event", KNOWN, ids=lambda event: type(event).__name__)
def test_a_known_event_comes_back_from_its_text(event: DpEvent) -> None:
    assert decode_event(encode_event(event)) == event


def test_the_text_is_canonical() -> None:
    """Frozen: ledgers on disk hold it."""
    assert encode_event(SelfComposedDpEvent(STEP, 4)) == (
        '{"count":4,"event":{"event":{"kind":"gaussian","noise_multiplier":3},'
        '"kind":"poisson-sampled","sampling_probability":0.1},"kind":"self-composed"}'
    )


@pytest.mark.parametrize(
    "event",
    [
        NonPrivateDpEvent(),
        NoOpDpEvent(),
        UnsupportedDpEvent(),
        ZCDpEvent(0.1),
        PoissonSampledDpEvent(0.1, LaplaceDpEvent(1.0)),
        PoissonSampledDpEvent(0.1, NonPrivateDpEvent()),
        PoissonSampledDpEvent(0.0, GaussianDpEvent(1.0)),
        PoissonSampledDpEvent(1.5, GaussianDpEvent(1.0)),
        GaussianDpEvent(0.0),
        GaussianDpEvent(-1.0),
        GaussianDpEvent(float("nan")),
        GaussianDpEvent(float("inf")),
        GaussianDpEvent(True),
        SelfComposedDpEvent(GaussianDpEvent(1.0), 0),
        SelfComposedDpEvent(GaussianDpEvent(1.0), -3),
        SelfComposedDpEvent(GaussianDpEvent(1.0), 2.5),  # type: ignore[arg-type]
        ComposedDpEvent([GaussianDpEvent(1.0), NonPrivateDpEvent()]),
    ],
    ids=repr,
)
def test_what_is_not_known_is_refused(event: DpEvent) -> None:
    with pytest.raises(ConfigError):
        encode_event(event)
    with pytest.raises(ConfigError):
        leaf_counts([event])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"kind":"non-private"}',
        '{"kind":"gaussian"}',
        '{"kind":"gaussian","noise_multiplier":1,"more":1}',
        '{"kind":"gaussian","noise_multiplier":"1"}',
        '{"kind":"gaussian","noise_multiplier":0}',
        '{"kind":"gaussian","noise_multiplier":NaN}',
        '{"kind":"self-composed","count":true,"event":{"kind":"gaussian","noise_multiplier":1}}',
        '{"kind":"composed","events":{}}',
        '{"kind":"poisson-sampled","sampling_probability":0.1,'
        '"event":{"kind":"laplace","noise_multiplier":1}}',
        '{"kind":["gaussian"],"noise_multiplier":1}',
    ],
)
def test_text_that_is_no_known_event_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        decode_event(text)


def test_nesting_is_bounded() -> None:
    event: DpEvent = GaussianDpEvent(1.0)
    for _ in range(20):
        event = ComposedDpEvent([event])

    with pytest.raises(ConfigError, match="levels"):
        encode_event(event)


def test_counting_does_not_depend_on_nesting() -> None:
    flat = ComposedDpEvent([STEP, STEP, GaussianDpEvent(4.0)])
    nested = ComposedDpEvent(
        [ComposedDpEvent([GaussianDpEvent(4.0)]), SelfComposedDpEvent(ComposedDpEvent([STEP]), 2)]
    )

    assert leaf_counts([flat]) == leaf_counts([nested])


@pytest.mark.parametrize(
    "text",
    [
        '{"kind":"discrete-laplace","parameter":0}',
        '{"kind":"discrete-laplace","parameter":21}',
        '{"kind":"discrete-laplace","parameter":true}',
        '{"kind":"discrete-laplace","parameter":"1"}',
        '{"kind":"discrete-laplace","parameter":1,"sensitivity":1}',
    ],
)
def test_discrete_laplace_noise_out_of_bounds_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        decode_event(text)


def test_discrete_laplace_noise_is_known_for_a_sensitivity_of_one_only() -> None:
    with pytest.raises(ConfigError, match="sensitivity 2"):
        encode_event(DiscreteLaplaceDpEvent(0.5, 2))

    assert encode_event(DiscreteLaplaceDpEvent(0.5, 1)) == (
        '{"kind":"discrete-laplace","parameter":0.5}'
    )
