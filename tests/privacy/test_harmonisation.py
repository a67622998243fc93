"""Sites made alike: what is charged and stays, that no patient moves another, the refusals."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_client.guard.states import check_constants
from fedward_common.arrays import tensors_from_bytes, tensors_to_bytes
from fedward_common.errors import ConfigError, ProtocolError, StudyFailed
from fedward_common.ids import SiteId
from fedward_common.privacy.disclosure import disclosure
from fedward_common.privacy.harmonise import harmonised, site_constants
from fedward_common.privacy.ledger import Reservation
from fedward_common.privacy.mechanism import release_event, study_event
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.encoding import encode_present
from fedward_common.study.files import parse_study
from fedward_common.study.harmonisation import LOCATION, SCALE, SiteHarmonisation, harmonisation_of
from fedward_common.study.kept import keeps_state, kept_words
from fedward_common.study.spec import StudySpec
from fedward_common.study.tabular import TabularData
from fedward_server.sandbox.table_copy import encoded_rows
from fedward_server.study_summary import leaves
from tests.support.ehr_studies import STUDY, TABLE
from tests.support.secure_federation import Federation, federation
from tests.support.studies import make_data, make_dp, make_spec, site_keys

NUMBERS = [
    {"name": name, "type": "number", "unit": "1", "low": -100.0, "high": 100.0}
    for name in ("lactate", "sodium")
]
DATA = make_data(columns=[*make_data()["columns"], *NUMBERS])
RELEASE = {
    "kind": "site-harmonisation",
    "columns": ["sodium", "lactate"],
    "locations": [10.0, -5.0],
    "scales": [40.0, 30.0],
    "noise_multiplier": 0.5,
}
EVALUATION = {"kind": "binned-scores", "bins": 4, "noise_multiplier": 3.0}


def study(release: dict[str, Any] | None = None, **changes: Any) -> StudySpec:
    """Four sites of 50 patients; `release` changes the harmonisation."""
    releases = [RELEASE | (release or {}), EVALUATION]
    return make_spec(**({"data": DATA, "releases": releases} | changes))


def the_release(spec: StudySpec) -> SiteHarmonisation:
    found = harmonisation_of(spec)
    assert found is not None
    return found


def rows(patients: int, *, shift: float, scale: float, seed: int = 0) -> list[dict[str, str]]:
    """The same people measured by another laboratory: every value times `scale` plus `shift`."""
    draws = np.random.default_rng(seed)
    values = draws.normal(0, 10, (patients, 2)) * scale + shift
    return [
        {
            "patient_id": f"p{n}", "age": "50", "pain": "2", "stage": "1",
            "split": "test" if n % 4 == 3 else "train",
            "lactate": f"{lactate:.6f}", "sodium": f"{sodium:.6f}",
        }
        for n, (lactate, sodium) in enumerate(values.tolist())
    ]  # fmt: skip


def tensors(
    spec: StudySpec, own: list[dict[str, str]], *, noise: bool = False, part: Any = "train"
) -> np.ndarray:
    data = spec.data
    assert isinstance(data, TabularData)
    constants = site_constants(the_release(spec), data, own, noise=Csprng() if noise else None)
    records = encode_present(data, own, part=part)[0]
    return harmonised(records, the_release(spec), data, constants).features


@pytest.mark.parametrize("noise", [False, True])
def test_two_sites_with_other_scales_become_alike(noise: bool) -> None:
    spec = study()
    one, other = rows(2000, shift=-20.0, scale=1.5), rows(2000, shift=35.0, scale=2.0)
    raw = [encode_present(spec.data, own, part="train")[0].features for own in (one, other)]  # type: ignore[arg-type]

    found = [tensors(spec, own, noise=noise) for own in (one, other)]

    assert np.abs(raw[0][:, 3:] - raw[1][:, 3:]).mean() > 0.5
    # 1,500 training patients: noise of 1.2 on the sums moves the smaller scale by a sixteenth.
    assert np.abs(found[0][:, 3:] - found[1][:, 3:]).mean() < (0.15 if noise else 1e-5)
    if not noise:
        np.testing.assert_allclose(found[0][:, 3:].mean(axis=0), [-0.05, 0.1], atol=0.02)
        np.testing.assert_allclose(found[0][:, 3:].std(axis=0), [0.3, 0.4], atol=0.03)
    np.testing.assert_array_equal(found[0][:, :3], raw[0][:, :3])
    assert np.abs(np.concatenate(found)).max() <= 1.0


def test_given_the_constants_removing_a_patient_moves_no_bit_of_another() -> None:
    spec, own = study(), rows(40, shift=5.0, scale=1.0)
    data = spec.data
    assert isinstance(data, TabularData)
    constants = site_constants(the_release(spec), data, own, noise=Csprng())

    def features(some: list[dict[str, str]]) -> np.ndarray:
        records = encode_present(data, some, part="train")[0]
        return harmonised(records, the_release(spec), data, constants).features

    np.testing.assert_array_equal(np.delete(features(own), 0, axis=0), features(own[1:]))


def test_held_out_patients_and_what_cannot_be_read_have_no_part_in_the_constants() -> None:
    spec, own = study(), rows(40, shift=5.0, scale=1.0)
    data = spec.data
    assert isinstance(data, TabularData)
    other = {"sodium": "99", "lactate": "-99"}
    spoilt = [row | (other if row["split"] == "test" else {}) for row in own]

    found = site_constants(the_release(spec), data, [*spoilt, {"split": "train"}], noise=None)

    expected = site_constants(the_release(spec), data, own, noise=None)
    assert all((found[name] == expected[name]).all() for name in (LOCATION, SCALE))


def test_a_site_of_which_nothing_is_known_gets_the_federation_s_own_figures() -> None:
    spec = study()
    data = spec.data
    assert isinstance(data, TabularData)

    found = site_constants(the_release(spec), data, [], noise=None)

    np.testing.assert_allclose(found[LOCATION], [0.1, -0.05])
    np.testing.assert_allclose(found[SCALE], [0.4, 0.3])


def test_a_scale_changes_by_no_more_than_the_study_says() -> None:
    spec = study({"most": 2.0})
    own = rows(40, shift=0.0, scale=0.0)  # everybody has the same values: a scale of zero

    assert np.isfinite(tensors(spec, own)).all()


def test_it_is_charged_and_disclosed() -> None:
    with_it, without = study(), make_spec(data=DATA)

    events = study_event(with_it).events  # type: ignore[attr-defined]
    assert release_event(the_release(with_it)) in events
    assert Reservation.of(with_it).releases == Reservation.of(without).releases + 1
    said = disclosure(with_it).as_json()["claim"]["releases"][0]["value"]
    assert said["kind"] == "site-harmonisation"
    assert said["sensitivity"] == "L2: root of 6"
    assert "once at each hospital" in said["when"]
    assert keeps_state(with_it)
    assert "sodium, lactate" in kept_words(with_it)
    assert not keeps_state(without)


CATEGORY = {"columns": ["pain", "sodium"]}
FILLED = [
    column | ({"fill": "1"} if column["type"] == "category" else {"fill": 50.0})
    for column in DATA["columns"]
]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"release": {"columns": ["unheard", "sodium"]}}, "number columns"),
        ({"release": CATEGORY}, "number columns"),
        ({"release": {"locations": [101.0, 0.0]}}, "location of 'sodium'"),
        ({"release": {"scales": [101.0, 1.0]}}, "scale of at most"),
        ({"release": {"noise_multiplier": 5.0}}, "fewer columns or less noise"),
        ({"aggregation": {"name": "scaffold"}}, "fedavg, fedprox or fedadam"),
        ({"data": DATA | {"columns": FILLED, "missing": "fill"}}, "missing = 'drop'"),
        ({"sites": ["north"]}, "at least two sites"),
        ({"releases": [RELEASE, RELEASE]}, "one site-harmonisation"),
        (
            {
                "secure_sum": True,
                "local_steps": 1,
                "dp": make_dp(steps=3, placement="distributed"),
            },
            "local noise",
        ),
    ],
)
def test_where_it_cannot_be_right_it_is_refused(changes: dict[str, Any], said: str) -> None:
    spec = study(**changes)

    with pytest.raises(ConfigError, match=said):
        Reservation.of(spec)


@pytest.fixture
def opened() -> Iterator[list[Federation]]:
    found: list[Federation] = []
    yield found
    for one in found:
        one.close()


def a_federation(folder: Path, opened: list[Federation], *, secure: bool) -> Federation:
    own = {
        "kind": "site-harmonisation", "columns": ["age", "pressure"], "locations": [60.0, 60.0],
        "scales": [30.0, 30.0], "noise_multiplier": 2.0,
    }  # fmt: skip
    evaluation = {"kind": "binned-scores", "bins": 5, "noise_multiplier": 20.0}
    change = {"secure_sum": secure, "releases": [own, evaluation]}
    one = federation(
        folder, placement="local", local_steps=2, change=change, noise_multiplier=1.0, epsilon=9.5
    )
    opened.append(one)
    return one


@pytest.mark.parametrize("secure", [False, True])
def test_a_site_draws_its_constants_once_charges_them_once_and_keeps_them(
    tmp_path: Path, opened: list[Federation], secure: bool
) -> None:
    one = a_federation(tmp_path, opened, secure=secure)

    result = one.run().run()

    assert result.committed_rounds == 3
    for hospital in one.hospitals.values():
        (account,) = hospital.service.ledger.accounts()
        slots = [charge.slot.partition("/")[2] for charge in account.charges]
        assert slots.count("harmonise/0") == 1
        assert slots[0] == "harmonise/0"  # before the first round, and so before any record
        found = tensors_from_bytes(hospital.service.states.find(one.study))
        assert {name: array.shape for name, array in found.items()} == {LOCATION: (2,), SCALE: (2,)}
    sent = b"".join(bytes(answer.blobs.get("payload", b"")) for _, _, answer in one.seen)
    assert b"harmonisation." not in sent


def test_constants_that_are_lost_end_the_site_s_part(
    tmp_path: Path, opened: list[Federation]
) -> None:
    """Drawn again they would be another release, which nobody charged."""
    one = a_federation(tmp_path, opened, secure=False)

    def tamper(site: SiteId, envelope: Any) -> Any:
        states = one.hospitals[site].service.states
        if states.find(one.study):
            states._path(one.study.digest).unlink()
        return envelope

    one.tamper = tamper
    with pytest.raises(StudyFailed):
        one.run().run()

    by_site = [[a.header for s, _, a in one.seen if s == site] for site in one.hospitals]
    assert all(len(answers) > 1 for answers in by_site)
    assert all(
        b'"kind":"refusal"' in header and b'"code":"ledger"' in header
        for answers in by_site
        for header in answers[1:]
    )


def test_constants_are_the_same_after_every_round() -> None:
    before = {LOCATION: np.zeros(2, np.float32), SCALE: np.ones(2, np.float32)}
    after = before | {SCALE: np.full(2, 2, np.float32)}
    check_constants(study(), tensors_to_bytes(before), before=tensors_to_bytes(before))

    with pytest.raises(ProtocolError, match="as they were drawn"):
        check_constants(study(), tensors_to_bytes(after), before=tensors_to_bytes(before))


def test_the_sandbox_s_parent_judges_the_model_on_records_made_alike() -> None:
    spec = study()
    own = rows(400, shift=-20.0, scale=1.5), rows(400, shift=35.0, scale=2.0)

    one, other = (encoded_rows(spec, SiteId("north"), r, part="test").features for r in own)

    np.testing.assert_allclose(one, other, atol=1e-4)


FILE = """
[training.pseudo_labels]
confidence = 0.9
[[releases]]
kind = "site-harmonisation"
columns = ["marker", "age"]
locations = [0.0, 55.0]
scales = [0.5, 20.0]
noise_multiplier = 1.0
[[sites]]
id = "north"
patients = 200
[[sites]]
id = "east"
patients = 100
[task]
kind = "tabular-classification"
[model]
name = "logistic-regression"
[data.label]
column = "dead"
low = 0
high = 1
positive_from = 1
"""


def test_a_study_file_asks_for_it_and_people_are_told() -> None:
    text = (STUDY + TABLE + FILE).replace(
        'kind = "tabular"', 'kind = "tabular"\nunlabelled = "keep"'
    )
    text = text.replace("quorum = 3", "quorum = 2")

    spec = parse_study(
        text,
        source="study.toml",
        keys=site_keys(("north", "east")),
        lead_key_sha256="f" * 64,
        resolve=lambda _study, _unknown: 3.0,
    )

    assert the_release(spec).columns == ("marker", "age")
    assert any("location and scale of marker, age" in line for line in leaves(spec))
    assert spec.training.pseudo_labels is not None
    with pytest.raises(ConfigError, match=r"study\.toml: releases\.site-harmonisation: expected"):
        parse_study(
            text.replace("patients = 100", "patients = 10"),
            source="study.toml",
            keys=site_keys(("north", "east")),
            lead_key_sha256="f" * 64,
        )
