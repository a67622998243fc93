"""Families in studies of several modalities: who is one unit, on which side, what is refused."""

import numpy as np
import pytest
from pydantic import ValidationError

from fedward_common.errors import DataError
from fedward_common.privacy.disclosure import disclosure
from fedward_common.study.encoding import PatientRecords, hash_part
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.kin import Kin, by_family, kin_of, per_person
from fedward_common.study.spec import StudySpec
from tests.support.multimodal import KIN, modalities, multimodal_study, schema
from tests.support.studies import make_dp

FAMILIES = {"modalities": modalities(genome={"family_key": "family"})}


def table(rows: list[tuple[str, str]]) -> Kin:
    """Who is kin by a table of (patient, family)."""
    genome = schema(**FAMILIES).parts["genome"]
    assert isinstance(genome, Genotypes)
    return kin_of(genome, [{"patient_id": one, "family": family} for one, family in rows])


def patients(names: str, *, each: int = 1) -> PatientRecords:
    """`each` records of every patient; the first input is the patient's number."""
    inputs = schema().input_size
    features = np.zeros((len(names) * each, inputs), np.float32)
    features[:, 0] = np.repeat(np.arange(len(names)), each)
    return PatientRecords(
        features=features,
        labels=np.repeat(np.arange(len(names)) % 2, each).astype(np.float32),
        patient=np.repeat(np.arange(len(names)), each),
        ids=tuple(names),
    )


def test_a_family_is_in_one_table_and_the_unit_of_the_study_says_so() -> None:
    study = multimodal_study(**KIN)

    assert (study.data.kin_from, study.data.family_key) == ("genome", "family")  # type: ignore[attr-defined]
    assert schema().kin_from is None
    again = StudySpec.model_validate_json(study.canonical)
    assert again.digest == study.digest
    for changes in ({"data": KIN["data"]}, {"dp": make_dp(unit="family")}):
        with pytest.raises(ValidationError, match="expected 'family' exactly where"):
            multimodal_study(**changes)
    two = [*FAMILIES["modalities"], {**FAMILIES["modalities"][2], "name": "more"}]
    with pytest.raises(ValidationError, match="family_key in one of them, found it in several"):
        schema(modalities=two)


def test_every_row_of_the_table_counts_and_missing_codes_are_no_family() -> None:
    kin = table([("a", "f"), ("b", "f"), ("c", "NA"), ("d", ""), ("", "f"), ("b", "")])

    assert dict(kin.families) == {"a": "f", "b": "f"}
    assert not kin.torn
    assert [kin.unit(one) for one in "abcz"] == [
        ("family", "f"),
        ("family", "f"),
        ("patient", "c"),
        ("patient", "z"),
    ]
    assert "a" not in repr(kin)[len("Kin") :]


def test_a_patient_s_name_is_no_family_s_name() -> None:
    kin = table([("a", "b"), ("c", "b")])
    data = schema(**FAMILIES)

    parts = [by_family(data, patients("abc"), kin, part=p) for p in ("train", "test")]  # type: ignore[arg-type]

    units = [part.labels[part.patient == n] for part in parts for n in range(part.patients)]
    assert sorted(len(own) for own in units) == [1, 2]


def test_kin_are_on_one_side_by_the_name_of_their_family() -> None:
    data = schema(**FAMILIES)
    names = "abcdefghijklmnopqrstuvwxyz"
    kin = table([(one, f"f{place // 3}") for place, one in enumerate(names[:18])])
    everybody = patients(names, each=2)

    sides = {p: by_family(data, everybody, kin, part=p) for p in ("train", "test")}  # type: ignore[arg-type]

    for part, found in sides.items():
        assert all(hash_part(data.split, name) == part for name in found.ids)
        for unit, name in enumerate(found.ids):
            own = found.features[found.patient == unit, 0]
            members = [
                place for place, one in enumerate(names) if name in (kin.families.get(one), one)
            ]
            assert own.tolist() == [place for place in members for _ in range(2)]
    assert sum(len(found.ids) for found in sides.values()) == 6 + 8
    assert all(found.patients for found in sides.values())
    by_patient = {kin.families[one]: {hash_part(data.split, k) for k in kin.families
                                      if kin.families[k] == kin.families[one]}
                  for one in kin.families}  # fmt: skip
    assert any(len(found) == 2 for found in by_patient.values())  # by their own names they straddle


def test_without_all_patients_of_one_family_every_other_family_is_the_same() -> None:
    """Rules 6, also where one of them is named in a second family: then in none."""
    rows = [("a", "f"), ("b", "f"), ("b", "g"), ("c", "g"), ("d", "g"), ("e", "")]
    data, whole = schema(**FAMILIES), table(rows)
    everybody = by_family(data.model_copy(update={"split": NOBODY}), patients("abcdef"), whole,
                          part="train")  # fmt: skip

    assert everybody.ids == ("f", "g", "e", "f")
    assert everybody.features[:, 0].tolist() == [0, 2, 3, 4, 5]
    for family in ("f", "g"):
        gone = {one for one, own in rows if own == family}
        kept = [number for number, one in enumerate("abcdef") if one not in gone]
        records = patients("abcdef")
        some = PatientRecords(
            features=records.features[kept],
            labels=records.labels[kept],
            patient=np.arange(len(kept)),
            ids=tuple("abcdef"[n] for n in kept),
        )
        left = table([(one, own) for one, own in rows if one not in gone])
        found = by_family(data.model_copy(update={"split": NOBODY}), some, left, part="train")
        others = [n for n in range(4) if everybody.ids[n] != family or n == 3]
        expected = np.isin(everybody.patient, others)
        assert found.features.tobytes() == everybody.features[expected].tobytes()
        assert found.ids == tuple(everybody.ids[n] for n in others)


NOBODY = per_person(schema()).split


def test_in_several_families_is_an_error_for_the_site_s_own_eyes_without_a_name() -> None:
    kin = table([("anna", "f"), ("anna", "g")])
    one = PatientRecords(
        features=np.zeros((1, schema().input_size), np.float32),
        labels=np.zeros(1, np.float32),
        patient=np.zeros(1, np.int64),
        ids=("anna",),
    )

    with pytest.raises(DataError, match="expected every patient in one family") as error:
        by_family(schema(**FAMILIES), one, kin, part="train", strict=True)
    assert "anna" not in str(error.value)
    assert by_family(schema(**FAMILIES), one, kin, part="train").patients == 0
    assert kin.part(schema(**FAMILIES), "anna") is None


def test_modalities_are_read_per_person_and_with_nobody_held_out() -> None:
    data = schema(**FAMILIES)

    read = per_person(data)

    assert read.kin_from is None
    assert read.input_size == data.input_size
    assert {part.split for part in read.parts.values()} == {read.split}
    assert all(hash_part(read.split, f"p{number}") == "train" for number in range(200))


def test_nobody_is_no_family() -> None:
    found = by_family(schema(**FAMILIES), patients(""), Kin(), part="test")

    assert (found.patients, found.features.shape) == (0, (0, schema().input_size))


def test_a_disclosure_names_the_unit_and_where_it_is_from() -> None:
    per_family = disclosure(multimodal_study(**KIN))
    whys = {one.what: one.why for one in per_family.uncovered}

    assert per_family.claim.unit.value == "family"
    assert "'family' in that site's table" in str(per_family.claim.adjacency.value)
    assert "of modality 'genome'" in str(per_family.claim.adjacency.value)
    why = whys["relatives who are not in the same family of the table"]
    assert "who has no readable row there, or none with a family, is a family alone" in why
    assert "a family's records" in per_family.claim.contribution_bound.value["how"]
