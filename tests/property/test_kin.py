"""Families of any table: one that leaves with all its patients changes no other, bit for bit."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.study.encoding import PatientRecords, hash_part
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.kin import by_family, kin_of
from tests.support.multimodal import KIN, multimodal_study

DATA = multimodal_study(**KIN).data
NAMES = [*"abcdefgh"]
ROW = st.tuples(
    st.sampled_from([*NAMES, "not here"]), st.sampled_from(["f", "g", "h", "a", "", "NA"])
)
TABLES = st.lists(ROW, max_size=16)


def records(names: list[str], sizes: list[int]) -> PatientRecords:
    """Records of patients whose inputs say whose they are."""
    whose = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
    return PatientRecords(
        features=np.array([ord(name) for name in whose], np.float32).reshape(-1, 1),
        labels=np.array([ord(name) % 2 for name in whose], np.float32),
        patient=np.repeat(np.arange(len(names)), sizes),
        ids=tuple(names),
    )


def units(rows: list[tuple[str, str]], patients: PatientRecords) -> dict[str, list[str]]:
    """The records of each unit of either side, as texts."""
    genome = DATA.parts["genome"]  # type: ignore[attr-defined]
    assert isinstance(genome, Genotypes)
    kin = kin_of(genome, [{"patient_id": one, "family": family} for one, family in rows])
    found: dict[str, list[str]] = {}
    for part in ("train", "test"):
        chosen = by_family(DATA, patients, kin, part=part)  # type: ignore[arg-type]
        for number, name in enumerate(chosen.ids):
            assert hash_part(DATA.split, name) == part  # type: ignore[attr-defined]
            own = chosen.patient == number
            whose = [chr(int(value)) for value in chosen.features[own, 0]]
            assert chosen.labels[own].tolist() == [ord(one) % 2 for one in whose]
            kind = "family" if kin.families.get(whose[0]) == name else "patient"
            assert f"{kind} {name}" not in found
            found[f"{kind} {name}"] = whose
    return found


@given(rows=TABLES, sizes=st.lists(st.integers(1, 3), min_size=len(NAMES), max_size=len(NAMES)))
def test_a_family_that_leaves_with_all_its_patients_changes_no_other(
    rows: list[tuple[str, str]], sizes: list[int]
) -> None:
    whole = units(rows, records(NAMES, sizes))
    named = {family for _, family in rows} - {"", "NA"}

    for gone in named:
        left = {one for one, family in rows if family == gone}
        kept = [(n, size) for n, size in zip(NAMES, sizes, strict=True) if n not in left]
        some = units(
            [row for row in rows if row[0] not in left],
            records([name for name, _ in kept], [size for _, size in kept]),
        )
        assert some == {name: own for name, own in whole.items() if name != f"family {gone}"}


@given(rows=TABLES)
def test_everybody_is_in_one_unit_but_for_who_is_in_several_families(
    rows: list[tuple[str, str]],
) -> None:
    whole = units(rows, records(NAMES, [1] * len(NAMES)))

    places = [one for own in whole.values() for one in own]
    named = {one: {f for n, f in rows if n == one} - {"", "NA"} for one in NAMES}
    assert sorted(places) == [one for one in NAMES if len(named[one]) < 2]
