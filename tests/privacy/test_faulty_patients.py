"""Whether a site trains must not depend on one patient's cells (rules 6 and 7).

A lead writes the schema. If a cell that the schema does not foresee made the site refuse, the
refusal would answer a question about one patient with certainty and outside epsilon. So a patient
whose rows do not fit counts as absent, exactly as if the rows were not in the table.
"""

from pathlib import Path

import numpy as np
import pytest

from fedward_client.data.tabular import CsvSource
from fedward_client.data_entries import CsvFile
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.errors import DataError
from fedward_common.ids import SiteId
from fedward_common.models.registry import initial_tensors
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.encoding import PatientRecords, TablePart
from tests.support.studies import SITES, make_dp, make_spec

HEADER = b"patient_id,age,pain,stage,split\n"
OTHERS = (b"p1,60,1,0,train\n", b"p2,70,2,3,train\n", b"p3,55,3,1,test\n")
FAULTS = {
    "text where a number belongs": b"victim,old,1,0,train\n",
    "a code that the schema leaves out": b"victim,60,9,0,train\n",
    "a label that the schema leaves out": b"victim,60,1,7,train\n",
    "neither train nor test": b"victim,60,1,0,maybe\n",
    "a row too short": b"victim,60,1\n",
    "a row too long": b"victim,60,1,0,train,more\n",
    "a broken quote": b'victim,"60,1,0,train\n',
    "bytes that are no UTF-8": b"victim\xff,60,1,0,train\n",
    "no patient id": b",60,1,0,train\n",
    "a patient twice": b"victim,60,1,0,train\nvictim,61,1,0,train\n",
    "both classes": b"victim,60,1,0,train\nvictim,60,1,1,train\n",
    "both sides of the split": b"victim,60,1,0,train\nvictim,60,1,0,test\n",
    "one good row and a faulty one": b"victim,60,1,0,train\nvictim,old,1,0,train\n",
}


def records(folder: Path, *rows: bytes, part: TablePart, limit: int = 1) -> PatientRecords:
    path = folder / "patients.csv"
    path.write_bytes(HEADER + b"".join(rows))
    study = make_spec(dp=make_dp(max_records_per_patient=limit))
    return CsvSource([CsvFile(path=path)]).records(study, part=part)


def same(one: PatientRecords, other: PatientRecords) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("features", "labels", "patient")
    )


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("place", [0, 1, 3], ids=["first", "between", "last"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_patient_counts_as_absent(
    tmp_path: Path, fault: str, place: int, part: TablePart
) -> None:
    rows = [*OTHERS[:place], FAULTS[fault], *OTHERS[place:]]

    assert same(records(tmp_path, *rows, part=part), records(tmp_path, *OTHERS, part=part))


def test_a_patient_with_several_records_is_absent_as_a_whole(tmp_path: Path) -> None:
    rows = (*OTHERS, FAULTS["one good row and a faulty one"])

    found = records(tmp_path, *rows, part="train", limit=4)

    assert same(found, records(tmp_path, *OTHERS, part="train", limit=4))


@pytest.mark.parametrize("rows", [(), (FAULTS["a row too short"],), (OTHERS[2],)])
def test_a_site_with_nobody_to_train_on_answers_with_noise_only(
    tmp_path: Path, rows: tuple[bytes, ...]
) -> None:
    study = make_spec()
    weights = initial_tensors(study.model, inputs=3)
    trainer = LocalTrainer(
        study, SiteId(SITES[0]), sampling=Csprng(), noise=Csprng(), flags=PerformanceFlags()
    )

    update = trainer.train(weights, records(tmp_path, *rows, part="train"))

    assert update.executed.steps == study.local_steps
    assert all((update.tensors[name] != weights[name]).all() for name in weights)


@pytest.mark.parametrize("header", [b"", b"patient_id,age\n", b"patient_id,age,age\n"])
def test_what_is_the_same_for_all_patients_is_still_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "patients.csv"
    path.write_bytes(header + b"p1,60\n")

    with pytest.raises(DataError):
        CsvSource([CsvFile(path=path)]).records(make_spec(), part="train")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        CsvSource([CsvFile(path=tmp_path / "none.csv")]).records(make_spec(), part="train")
