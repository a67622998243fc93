"""study.toml: complete studies from files, and one clear line for every mistake."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedward_common.errors import ConfigError
from fedward_common.privacy.accounting import epsilon_admission
from fedward_common.privacy.mechanism import study_event
from fedward_common.study.files import Unknown, explain, parse_study, read_toml
from fedward_common.study.registry import Strict, TaskSpec
from fedward_common.study.spec import DpSgd, StudySpec
from tests.support.studies import LEAD, load_example, site_keys

STUDY = """
id = "made-up"
title = "A made-up study"
rounds = 3
local_steps = 5
quorum = 2
deadline_seconds = 30

[task]
kind = "tabular-classification"

[model]
name = "logistic-regression"

[dp]
kind = "dp-sgd"
epsilon = 4.0
delta = 1e-4
clip_norm = 0.5
sampling_probability = 0.5
max_records_per_patient = 1

[training]
learning_rate = 0.5

[aggregation]
name = "fedavg"

[[releases]]
kind = "binned-scores"
bins = 4
noise_multiplier = 3.0

[[sites]]
id = "north"
patients = 50

[[sites]]
id = "east"
patients = 50

[data]
kind = "tabular"
patient_key = "patient_id"

[data.label]
column = "stage"
low = 0
high = 4
positive_from = 1

[data.split]
kind = "column"
column = "split"

[[data.columns]]
name = "age"
type = "number"
unit = "years"
low = 20
high = 100

[[data.columns]]
name = "pain"
type = "category"
values = ["1", "2", "3"]
"""


def parse(text: str, *, number: float = 2.5) -> StudySpec:
    return parse_study(
        text,
        source="study.toml",
        keys=site_keys(),
        lead_key_sha256=LEAD,
        resolve=lambda _study, _unknown: number,
    )


def problem(old: str, new: str) -> str:
    """The error of STUDY with `old` replaced by `new`."""
    assert old in STUDY
    with pytest.raises(ConfigError) as caught:
        parse(STUDY.replace(old, new, 1))
    return str(caught.value)


def test_a_study_file_becomes_a_complete_study() -> None:
    study = parse(STUDY)

    assert [site.id for site in study.sites] == ["north", "east"]
    assert study.sites[0].key_sha256 == site_keys()["north"].key_sha256
    assert study.lead_key_sha256 == LEAD
    assert isinstance(study.dp, DpSgd)
    assert study.dp.steps == 15


def test_a_study_says_what_its_models_tensors_are() -> None:
    """So that a guard needs no model, and no torch, to check an update."""
    written = {tensor.name: tensor.shape for tensor in parse(STUDY).model.tensors}

    assert written == {"linear.weight": (1, 3), "linear.bias": (1,)}


def test_tensors_that_are_not_the_models_are_refused() -> None:
    lie = '[model]\ntensors = [{ name = "linear.weight", shape = [1, 500] }]'

    assert "model.tensors: expected those of the model" in problem("[model]", lie)


def test_the_noise_is_derived_from_the_epsilon_of_the_file() -> None:
    asked: list[tuple[float, int, Unknown]] = []

    def resolve(study: StudySpec, unknown: Unknown) -> float:
        assert isinstance(study.dp, DpSgd)
        asked.append((study.dp.epsilon, study.dp.steps, unknown))
        return 2.5

    study = parse_study(
        STUDY, source="study.toml", keys=site_keys(), lead_key_sha256=LEAD, resolve=resolve
    )

    assert asked == [(4.0, 15, "noise_multiplier")]
    assert isinstance(study.dp, DpSgd)
    assert study.dp.noise_multiplier == 2.5


def test_derived_noise_keeps_training_and_releases_within_epsilon() -> None:
    study = parse_study(STUDY, source="study.toml", keys=site_keys(), lead_key_sha256=LEAD)

    assert isinstance(study.dp, DpSgd)
    spent = epsilon_admission([study_event(study)], delta=study.dp.delta)
    assert 3.99 < spent <= study.dp.epsilon


def test_a_derived_epsilon_is_rounded_up() -> None:
    study = parse_study(
        STUDY.replace("epsilon = 4.0", "noise_multiplier = 3.0"),
        source="study.toml",
        keys=site_keys(),
        lead_key_sha256=LEAD,
    )

    assert isinstance(study.dp, DpSgd)
    spent = epsilon_admission([study_event(study)], delta=study.dp.delta)
    assert study.dp.noise_multiplier == 3.0
    assert spent < study.dp.epsilon < spent + 2e-4


def test_of_epsilon_and_noise_the_file_gives_exactly_one() -> None:
    expected = "study.toml: dp: expected exactly one of epsilon and noise_multiplier, found "

    assert problem("epsilon = 4.0", "").startswith(expected + "neither")
    assert problem("epsilon = 4.0", "epsilon = 4.0\nnoise_multiplier = 1.0").startswith(
        expected + "both"
    )


@pytest.mark.parametrize("value", ["0", "0.0", "-1.0"])
def test_an_epsilon_of_zero_or_below_is_one_clear_line(value: str) -> None:
    assert problem("epsilon = 4.0", f"epsilon = {value}") == (
        f"study.toml: dp.epsilon: expected a number above 0, found {value}"
    )


def test_an_unknown_model_names_the_known_ones() -> None:
    found = problem('name = "logistic-regression"', 'name = "oracle"')

    said = re.fullmatch(
        r"study\.toml: model\.name: expected one of \[(.*)\], found 'oracle'", found
    )
    assert said is not None
    known = [name.strip("'") for name in said[1].split(", ")]
    assert known == sorted(known)  # the list grows with every model
    assert {"cnn", "logistic-regression", "lstm", "mlp", "resnet18", "unet"} <= set(known)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "rounds = 3",
            'rounds = "three"',
            "study.toml: rounds: expected a whole number, found 'three'",
        ),
        ("quorum = 2", "quorum = 0", "study.toml: quorum: expected at least 1, found 0"),
        (
            "quorum = 2",
            "quorum = 2.5",
            "study.toml: quorum: expected a whole number, found 2.5",
        ),
        (
            "quorum = 2",
            "quorum = 2\ncolour = 1",
            "study.toml: colour: expected only known keys, found this one; remove it or correct "
            "its spelling",
        ),
        (
            "learning_rate = 0.5",
            "learning_rat = 0.5",
            "study.toml: training.learning_rate: expected a value, found none; add this key\n"
            "study.toml: training.learning_rat: expected only known keys, found this one; remove "
            "it or correct its spelling",
        ),
        (
            "low = 20\nhigh = 100",
            'low = 20\nhigh = "old"',
            "study.toml: data.columns[age].high: expected a number, found 'old'",
        ),
        (
            'type = "number"',
            'type = "colour"',
            "study.toml: data.columns[age]: expected one of 'number', 'category' as 'type', "
            "found a table",
        ),
        (
            "low = 20\nhigh = 100",
            "low = 200\nhigh = 100",
            "study.toml: data.columns[age]: expected low < high, found 200.0 and 100.0",
        ),
        ("bins = 4", "bins = 21", "study.toml: releases[#1].bins: expected at most 20, found 21"),
        (
            "patients = 50",
            "patients = true",
            "study.toml: sites[north].patients: expected a whole number, found true",
        ),
        (
            'kind = "tabular-classification"',
            'kind = "magic"',
            f"study.toml: task: unknown kind 'magic', expected one of {sorted(TaskSpec.variants)}",
        ),
        (
            "delta = 1e-4",
            "delta = 0.0011",
            "study.toml: the file: dp.delta: expected at most 0.001 (1 / (10 N)), found 0.0011",
        ),
        (
            'name = "fedavg"',
            'name = "fedmagic"',
            "study.toml: aggregation: expected one of 'fedavg', 'fedprox', 'fedadam', 'scaffold', "
            "'fedbn' as 'name', found a table",
        ),
    ],
)
def test_a_mistake_names_the_key_what_was_expected_and_what_was_found(
    old: str, new: str, expected: str
) -> None:
    assert problem(old, new) == expected


def test_a_missing_table_is_named() -> None:
    text = problem("[training]\nlearning_rate = 0.5\n", "")

    assert text == "study.toml: training: expected a value, found none; add this key"


def test_key_digests_do_not_belong_in_a_study_file() -> None:
    digest = "a" * 64

    assert "sites.key_sha256: expected no key digest" in problem(
        "patients = 50", f'patients = 50\nkey_sha256 = "{digest}"'
    )
    assert "lead_key_sha256: expected no key digest" in problem(
        "quorum = 2", f'quorum = 2\nlead_key_sha256 = "{digest}"'
    )


def test_a_site_whose_keys_nobody_has_is_refused() -> None:
    text = problem('id = "north"', 'id = "atlantis"')

    assert "sites[atlantis]: expected a site whose keys the signer has" in text
    assert "north" in text


def test_what_is_not_toml_is_refused_with_the_line() -> None:
    assert "expected TOML, found an error" in problem("rounds = 3", "rounds = = 3")
    assert "line 4" in problem("rounds = 3", "rounds = = 3")


def test_what_the_accountant_refuses_names_the_file() -> None:
    def resolve(_study: StudySpec, _unknown: Unknown) -> float:
        raise ConfigError("dp.epsilon: expected more")

    with pytest.raises(ConfigError, match=r"study\.toml: dp\.epsilon: expected more"):
        parse_study(
            STUDY, source="study.toml", keys=site_keys(), lead_key_sha256=LEAD, resolve=resolve
        )


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"title = '\xff'")

    with pytest.raises(ConfigError, match="expected a readable file, found none"):
        read_toml(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="expected UTF-8 text"):
        read_toml(binary)


def test_any_settings_model_is_explained_the_same_way() -> None:
    class Ports(Strict):
        gateway: int

    class Settings(Strict):
        ports: Ports

    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"ports": {"gateway": "x", "colour": 1}})

    assert str(explain(caught.value, source="site.toml")) == (
        "site.toml: ports.gateway: expected a whole number, found 'x'\n"
        "site.toml: ports.colour: expected only known keys, found this one; remove it or correct "
        "its spelling"
    )


@pytest.mark.parametrize(
    ("name", "epsilon", "delta"), [("breast-cancer", 2, 2e-4), ("heart", 4, 1e-4)]
)
def test_the_example_studies_declare_what_the_readme_says(
    name: str, epsilon: float, delta: float
) -> None:
    study = load_example(name, noise_multiplier=5.0)

    assert isinstance(study.dp, DpSgd)
    assert (study.id, study.dp.epsilon, study.dp.delta) == (name, epsilon, delta)
    assert len(study.sites) == 4
    assert study.rounds <= 8
