"""disclosure.json: every plan value shows, what nobody gave is missing, the schema is kept."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import fedward_common.privacy.disclosure as module
from fedward_common.errors import ConfigError
from fedward_common.privacy.disclosure import Disclosure, Entry, KnownFacts, disclosure
from fedward_common.study.registry import ReleaseSpec
from fedward_common.study.spec import StudySpec
from tests.support.statistics import a_release, statistics_study
from tests.support.studies import make_dp, make_spec

SCHEMA = Path(module.__file__).with_name("disclosure.schema.json")
FLIPS: list[tuple[str, Any]] = [
    ("epsilon", 3.0),
    ("epsilon_is", "pld"),
    ("delta", 5e-5),
    ("noise_multiplier", 4.0),
    ("clip_norm", 0.25),
    ("sampling_probability", 0.25),
    ("max_records_per_patient", 3),
    ("clipping", "auto-s"),
]
OPTIONAL = (
    "charged",
    "utility",
    "audit",
    "software",
    "hyper_parameters",
    "pre_training",
    "subgroups",
    "justification",
    "tier",
)


def document(study: StudySpec, **facts: Any) -> dict[str, Any]:
    return disclosure(study, KnownFacts(**facts)).as_json()


def entries(value: Any) -> list[dict[str, Any]]:
    """Every entry in a document."""
    if isinstance(value, dict):
        if value.keys() == {"value", "status"}:
            return [value]
        return [entry for item in value.values() for entry in entries(item)]
    return [entry for item in value for entry in entries(item)] if isinstance(value, list) else []


def without_identity(found: dict[str, Any]) -> dict[str, Any]:
    """The claim alone: a digest would change with anything."""
    claim: dict[str, Any] = found["claim"]
    return claim


@pytest.mark.parametrize(("name", "value"), FLIPS, ids=[name for name, _ in FLIPS])
def test_each_value_of_the_plan_shows_in_the_document(name: str, value: Any) -> None:
    before = document(make_spec())
    after = document(make_spec(dp=make_dp(**{name: value})))

    assert without_identity(before) != without_identity(after)
    assert after["claim"]["plan"][name] == {"value": value, "status": "configured"}


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 4, "dp": make_dp(steps=20)},
        {"local_steps": 6, "dp": make_dp(steps=18)},
        {"releases": []},
        {"releases": [{"kind": "binned-scores", "bins": 4, "noise_multiplier": 5.0}]},
        {"releases": [{"kind": "binned-scores", "bins": 5, "noise_multiplier": 3.0}]},
        {"quorum": 2},
        {"ethics_valid_until": "2027-03-31"},
    ],
    ids=["rounds", "steps", "no release", "release noise", "bins", "quorum", "ethics"],
)
def test_each_other_value_that_decides_the_claim_shows(changes: dict[str, Any]) -> None:
    changed = document(make_spec(**changes))

    assert without_identity(changed) != without_identity(document(make_spec()))


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 3.0},
        {"min_cell_size": 20},
        {"columns": ["age"]},
        {"statistics": ["count"]},
        {
            "mechanism": "discrete-laplace",
            "statistics": ["count", "histogram"],
        },
    ],
)
def test_each_value_of_a_statistics_release_shows(changes: dict[str, Any]) -> None:
    before = document(statistics_study())

    after = document(statistics_study(releases=[a_release(**changes)]))

    assert without_identity(before) != without_identity(after)


@pytest.mark.parametrize("study", [make_spec(), statistics_study()], ids=["training", "statistics"])
def test_what_nobody_gave_is_missing_and_never_a_default(study: StudySpec) -> None:
    bare = document(study)

    for entry in entries(bare):
        assert (entry["value"] is None) == (entry["status"] == "missing")
    for name in (
        "charged_by_site",
        "hyper_parameters",
        "utility",
        "subgroups",
        "empirical_audit",
        "ethics_valid_until",
        "software",
    ):
        assert bare["claim"][name] == {"value": None, "status": "missing"}
    assert bare["registry"]["tier"]["status"] == "missing"
    assert bare["registry"]["implementation"]["justification"]["status"] == "missing"


@pytest.mark.parametrize("name", OPTIONAL)
def test_each_given_fact_shows_and_without_it_it_is_missing(name: str) -> None:
    value: Any = "a person's words"
    if name in ("charged", "utility", "audit", "software"):
        value = {"north": 1.5}

    with_fact = entries(document(make_spec(), **{name: value}))

    assert [e for e in with_fact if e["value"] == value]
    assert not [e for e in entries(document(make_spec())) if e["value"] == value]


def test_adjacency_unit_k_sampler_accountant_and_collusion_are_named() -> None:
    claim = document(make_spec())["claim"]

    assert "add or remove" in claim["adjacency"]["value"]
    assert claim["unit"]["value"] == "patient"
    assert claim["contribution_bound"]["value"]["records_per_patient"] == 1
    assert "Poisson" in claim["sampler"]["value"]
    assert claim["accountant"]["value"]["version"] == version("dp-accounting")
    assert "all other hospitals together" in claim["collusion"]["value"]
    assert "noise_multiplier" in claim["mechanism"]["value"]


def test_what_is_uncovered_is_listed_and_can_only_grow() -> None:
    bare, more = (
        document(make_spec(), further_uncovered=further)["uncovered"]
        for further in ((), (("tuning", "by hand"),))
    )

    assert len(bare) >= 7
    assert more == [*bare, {"what": "tuning", "why": "by hand"}]


def test_a_release_without_accounting_is_not_disclosed_as_if_it_had_one() -> None:
    study = make_spec(releases=[])
    unknown = study.model_copy(update={"releases": (ReleaseSpec(kind="survey"),)})

    with pytest.raises(ConfigError, match="survey"):
        disclosure(unknown)


def test_the_document_is_json_and_reads_back_as_the_same() -> None:
    found = document(make_spec(), charged={"north": 1.0})

    again = json.loads(json.dumps(found, allow_nan=False))

    assert Disclosure.model_validate(again).as_json() == found


def test_an_entry_of_another_status_is_no_entry() -> None:
    with pytest.raises(ValueError, match="status"):
        Entry.model_validate({"value": 1, "status": "assumed"})


def test_the_schema_in_the_repository_is_that_of_the_document() -> None:
    assert json.loads(SCHEMA.read_text()) == Disclosure.model_json_schema()
