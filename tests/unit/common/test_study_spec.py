"""StudySpec v1: what it refuses, and what its digest and weights are."""

from typing import Any

import pytest
from pydantic import ValidationError

from fedward_common.canonical import sha256_hex
from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec
from fedward_common.study.tabular import NumberColumn
from tests.support.studies import make_data, make_document, make_dp, make_spec


def refused(match: str, **changes: Any) -> None:
    with pytest.raises(ValidationError, match=match):
        make_spec(**changes)


def test_equal_studies_have_equal_canonical_bytes() -> None:
    assert make_spec().canonical == make_spec().canonical


def test_a_study_survives_its_canonical_bytes() -> None:
    study = make_spec()

    again = StudySpec.model_validate_json(study.canonical)

    assert again == study
    assert again.digest == study.digest


def test_any_change_is_another_digest() -> None:
    study = make_spec()

    assert make_spec(title="Another title").digest != study.digest
    assert make_spec(lead_key_sha256="e" * 64).digest != study.digest


def test_a_changed_site_key_is_another_digest_and_another_roster() -> None:
    document = make_document()
    document["sites"][0]["key_sha256"] = "a" * 64

    changed = StudySpec.model_validate(document)

    assert changed.digest != make_spec().digest
    assert changed.roster_sha256 != make_spec().roster_sha256


def test_a_study_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        make_spec().rounds = 99


def test_weights_are_public_patients_over_their_sum() -> None:
    document = make_document(sites=("north", "east"))
    document["sites"][0]["patients"] = 150

    study = StudySpec.model_validate(document)

    assert study.public_patients == 200
    assert study.weight(SiteId("north")) == 0.75
    assert study.weight(SiteId("nowhere")) == 0.0
    assert study.site(SiteId("nowhere")) is None


def test_steps_are_rounds_times_local_steps() -> None:
    refused("dp.steps: expected rounds x local_steps = 15, found 14", dp=make_dp(steps=14))


@pytest.mark.parametrize("delta", [0.0, 6e-4, 0.5])
def test_delta_is_at_most_one_in_ten_times_the_patients(delta: float) -> None:
    refused("delta", dp=make_dp(delta=delta))


@pytest.mark.parametrize("name", ["epsilon", "noise_multiplier", "clip_norm"])
@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), "2"])
def test_privacy_numbers_are_positive_and_finite(name: str, value: object) -> None:
    refused(name, dp=make_dp(**{name: value}))


@pytest.mark.parametrize("value", [0.0, 1.0001, -0.5])
def test_the_sampling_probability_is_a_probability_above_zero(value: float) -> None:
    refused("sampling_probability", dp=make_dp(sampling_probability=value))


def test_ids_and_keys_of_sites_are_each_used_once() -> None:
    twice = make_document()
    twice["sites"][1]["id"] = twice["sites"][0]["id"]
    same_key = make_document()
    same_key["sites"][1]["node_key_sha256"] = same_key["sites"][0]["key_sha256"]

    for document, match in ((twice, "every id once"), (same_key, "every key once")):
        with pytest.raises(ValidationError, match=match):
            StudySpec.model_validate(document)


def test_the_quorum_is_at_most_the_number_of_sites() -> None:
    refused("quorum: expected at most 4", quorum=5)


def test_no_more_rounds_are_averaged_than_there_are() -> None:
    refused("average_last", aggregation={"name": "fedavg", "average_last": 4})


def test_unknown_keys_are_refused_at_every_level() -> None:
    refused("extra", colour="red")
    refused("colour", dp=make_dp(colour="red"))
    refused("colour", data=make_data(colour="red"))


@pytest.mark.parametrize("part", ["task", "data", "dp"])
def test_unknown_kinds_are_refused(part: str) -> None:
    refused("unknown kind 'magic'", **{part: {"kind": "magic"}})


def test_an_uncovered_evaluation_cannot_be_asked_for() -> None:
    refused("uncovered_evaluation", uncovered_evaluation=True)


def test_a_fill_rule_needs_a_public_value_for_every_column() -> None:
    refused("expected a public fill value for 'age'", data=make_data(missing="fill"))


def test_a_column_name_is_used_once() -> None:
    refused("every column name once", data=make_data(patient_key="age"))


def test_a_range_too_wide_to_be_scaled_is_refused() -> None:
    """high - low is infinite: a patient's huge cell became NaN and stopped a release for all."""
    column = {"name": "age", "type": "number", "unit": "years", "low": -1.7e308, "high": 1.7e308}

    with pytest.raises(ValidationError, match="nearer to each other"):
        NumberColumn.model_validate(column)


def test_inputs_are_one_per_number_and_one_less_than_the_values_of_a_category() -> None:
    data: Any = make_spec().data

    assert data.input_size == 3


def test_a_changed_copy_has_a_digest_of_its_own() -> None:
    study = make_spec()
    before = study.digest

    changed = study.model_copy(update={"title": "Another"})

    assert changed.digest == sha256_hex(changed.canonical) != before
    assert study.digest == before == sha256_hex(study.canonical)
