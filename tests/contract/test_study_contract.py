"""StudySpec v1 is frozen (rules 29): its bytes never change, and it grows by registration only.

A failure here means that every study signed before would get another digest. Do not change the
vectors: add a new variant, or a new format beside this one.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.study.evaluation import BinnedScores
from fedward_common.study.registry import (
    DataSpec,
    DpSpec,
    ReleaseSpec,
    TaskSpec,
    Variant,
    register,
)
from fedward_common.study.spec import StudySpec
from tests.support.studies import make_document, make_spec

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "study_v1.json").read_text(encoding="utf-8")
)["examples"]
UNIONS: list[type[Variant]] = [TaskSpec, DataSpec, DpSpec, ReleaseSpec]


@pytest.fixture
def unions_restored() -> Iterator[None]:
    """A kind that a test registers is gone afterwards."""
    before = [dict(union.__dict__["variants"]) for union in UNIONS]
    yield
    for union, variants in zip(UNIONS, before, strict=True):
        union.__dict__["variants"].clear()
        union.__dict__["variants"].update(variants)


@pytest.mark.parametrize("vector", VECTORS, ids=[v["study"]["id"] for v in VECTORS])
def test_the_canonical_bytes_and_the_digest_are_those_of_the_first_version(
    vector: dict[str, Any],
) -> None:
    study = StudySpec.model_validate(vector["study"])

    assert study.canonical.decode() == vector["canonical"]
    assert study.digest == vector["sha256"]
    assert study.roster_sha256 == vector["roster_sha256"]


@pytest.mark.parametrize("vector", VECTORS, ids=[v["study"]["id"] for v in VECTORS])
def test_a_study_of_the_first_version_is_read_back_field_by_field(vector: dict[str, Any]) -> None:
    study = StudySpec.model_validate_json(vector["canonical"])

    assert study.model_dump(mode="json") == vector["study"]
    assert canonical_json(vector["study"]) == study.canonical
    assert sha256_hex(study.canonical) == study.digest


def test_the_kinds_of_the_first_version_are_known() -> None:
    known = {union.__name__: set(union.__dict__["variants"]) for union in UNIONS}

    assert known["TaskSpec"] >= {"tabular-classification"}
    assert known["DataSpec"] >= {"tabular"}
    assert known["DpSpec"] >= {"dp-sgd"}
    assert known["ReleaseSpec"] >= {"binned-scores"}


@pytest.mark.parametrize("part", ["task", "data", "dp", "releases"])
def test_a_registered_kind_is_parsed_and_written_like_any_other(
    part: str, unions_restored: None
) -> None:
    union: Any = dict(zip(("task", "data", "dp", "releases"), UNIONS, strict=True))[part]

    class NewKind(union):  # type: ignore[misc]
        kind: Literal["brand-new"] = "brand-new"
        size: int

    value = {"kind": "brand-new", "size": 3}
    document = make_document(**{part: [value] if part == "releases" else value})
    with pytest.raises(ValidationError, match="unknown kind 'brand-new'"):
        StudySpec.model_validate(document)

    register(NewKind)
    study = StudySpec.model_validate(document)

    written = json.loads(study.canonical)
    assert written[part] == ([value] if part == "releases" else value)
    assert StudySpec.model_validate_json(study.canonical) == study


def test_releases_of_different_kinds_stand_side_by_side(unions_restored: None) -> None:
    @register
    class Survey(ReleaseSpec):
        kind: Literal["survey"] = "survey"
        questions: int

    study = make_spec(
        releases=[
            {"kind": "survey", "questions": 2},
            {"kind": "binned-scores", "bins": 4, "noise_multiplier": 3.0},
        ]
    )

    assert [type(release) for release in study.releases] == [Survey, BinnedScores]
    assert StudySpec.model_validate_json(study.canonical) == study


def test_registering_a_kind_changes_no_digest(unions_restored: None) -> None:
    before = make_spec().digest

    @register
    class Another(TaskSpec):
        kind: Literal["another"] = "another"

    assert make_spec().digest == before


@pytest.mark.parametrize("part", ["task", "data", "dp"])
@pytest.mark.parametrize("value", [{"kind": "magic"}, {}, {"kind": 3}, "tabular", None])
def test_an_unknown_kind_is_refused(part: str, value: object) -> None:
    with pytest.raises(ValidationError, match=r"unknown kind|expected a table with a 'kind'"):
        make_spec(**{part: value})


def test_another_format_is_refused() -> None:
    with pytest.raises(ValidationError, match="format"):
        make_spec(format="fedward-study/2")
