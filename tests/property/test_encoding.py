"""Rules 6: nothing is fitted on a site's own patients."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.study.encoding import TablePart, encode_table, hash_part
from fedward_common.study.tabular import HashSplit, TabularData
from tests.support.studies import make_data

SPLIT = HashSplit(salt="property", held_out=0.4)
HASH = TabularData.model_validate(make_data(split=SPLIT.model_dump()))
COLUMN = TabularData.model_validate(make_data())
ANCHORS = [f"a{n}" for n in range(20) if hash_part(SPLIT, f"a{n}") == "train"][:2]
"""Complete patients to train on under both splits: whoever is removed, one of them is left."""

numbers = st.one_of(
    st.integers(-1000, 1000).map(str),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(repr),
    st.sampled_from(["", "?", "1e3", "-0"]),
)


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, str]]:
    """Two anchors and some patients with one to three rows each, rows in any order."""
    rows = [
        {"patient_id": anchor, "age": "50", "pain": "1", "stage": "0", "split": "train"}
        for anchor in ANCHORS
    ]
    for number in range(draw(st.integers(1, 8))):
        patient = {
            "patient_id": f"p{number}",
            "stage": draw(st.sampled_from("0134")),
            "split": draw(st.sampled_from(["train", "test"])),
        }
        rows += [
            patient | {"age": draw(numbers), "pain": draw(st.sampled_from(["1", "2.0", "3", "?"]))}
            for _ in range(draw(st.integers(1, 3)))
        ]
    if len({row["stage"] == "0" for row in rows}) == 1:
        rows[0]["stage"] = "4"
    return list(draw(st.permutations(rows)))


def blocks(schema: TabularData, rows: list[dict[str, str]], part: TablePart) -> list[bytes]:
    """The bytes of each patient's features and labels, in the order of the patients."""
    records = encode_table(schema, rows, part=part)
    owners = [records.patient == number for number in range(records.patients)]
    return [records.features[own].tobytes() + records.labels[own].tobytes() for own in owners]


@given(rows=tables(), data=st.data())
def test_removing_one_patient_leaves_every_other_patient_bit_identical(
    rows: list[dict[str, str]], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted({row["patient_id"] for row in rows})))
    rest = [row for row in rows if row["patient_id"] != gone]
    for schema in (HASH, COLUMN):
        for part in ("train", "test"):
            before, after = blocks(schema, rows, part), blocks(schema, rest, part)

            # The order of the others stays too, so the rest is `before` without one block or whole.
            without_one = [before[:n] + before[n + 1 :] for n in range(len(before))]
            assert after in (before, *without_one)


@given(rows=tables())
def test_every_input_lies_between_minus_one_and_one_and_patients_never_fall(
    rows: list[dict[str, str]],
) -> None:
    records = encode_table(COLUMN, rows, part="train")

    assert records.features.dtype == np.float32
    assert np.isfinite(records.features).all()
    assert (np.abs(records.features) <= 1.0).all()
    assert set(np.diff(records.patient)) <= {0, 1}
    assert set(records.labels) <= {0.0, 1.0}
