"""Profiles as tensors: genes by name, scales told apart, matrices in four formats."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedward_common.errors import DataError
from fedward_common.study.matrices import read_matrix
from fedward_common.study.profile_encoding import LayerFile, check_scale, gene_name
from fedward_common.study.profiles import ProfileData
from fedward_common.study.row_encoding import encode_rows
from fedward_common.study.row_readers import readers_of

GENES = ("TP53", "BRCA1")
MAPPING = "ensembl,hgnc\nENSG00000141510,TP53\nENSG00000012048,BRCA1\n"


def data(layer: Mapping[str, Any] | None = None, **changes: Any) -> ProfileData:
    values = {
        "kind": "profiles",
        "layers": [{"name": "rna", "scale": "log2-tpm", "genes": GENES, **(layer or {})}],
        "clinical": [
            {"name": "age", "type": "number", "unit": "years", "low": 20.0, "high": 100.0}
        ],
        "label": {"column": "days", "event_column": "dead", "longest_days": 1000.0},
        "split": {"kind": "column", "column": "split"},
    }
    return ProfileData.model_validate(values | changes)


def rows(*patients: str) -> list[dict[str, str]]:
    common = {"age": "60", "days": "100", "dead": "1", "split": "train"}
    return [{"patient_id": patient, **common} for patient in patients]


def matrix(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def file(path: Path, **changes: Any) -> LayerFile:
    values: dict[str, Any] = {
        "layer": "rna", "path": path, "scale": "log2-tpm", "identifiers": "hgnc",
    }  # fmt: skip
    return LayerFile(**(values | changes))


def encoded(schema: ProfileData, found: LayerFile, *patients: str, **more: Any) -> Any:
    readers = readers_of(schema, layers=[found])
    return encode_rows(schema, rows(*patients), readers.features, part="train", **more)


def test_genes_stand_in_the_study_s_order_behind_the_clinical_columns(tmp_path: Path) -> None:
    path = matrix(tmp_path / "m.csv", ["id,BRCA1,other,tp53", "a,16,1,0", "b,8,1,4"])

    records, absent = encoded(data(), file(path), "b", "a")

    assert absent == 0
    assert records.features.tolist() == [[0.0, -0.5, 0.0], [0.0, -1.0, 1.0]]
    assert records.labels.tolist() == [100.0, 100.0]


def test_a_layer_s_weight_scales_its_inputs_and_no_others(tmp_path: Path) -> None:
    path = matrix(tmp_path / "m.csv", ["id,TP53,BRCA1", "a,16,0"])

    records, _ = encoded(data({"weight": 0.5}), file(path), "a")

    assert records.features.tolist() == [[0.0, 0.5, -0.5]]


def test_ensembl_versions_do_not_count_and_other_names_go_through_the_mapping(
    tmp_path: Path,
) -> None:
    path = matrix(tmp_path / "m.tsv", ["id\tENSG00000141510.17\tENSG00000012048.2", "a\t16\t0"])
    mapping = matrix(tmp_path / "map.csv", MAPPING.splitlines())
    digest = hashlib.sha256(MAPPING.encode()).hexdigest()
    found = file(path, identifiers="ensembl", mapping=mapping)

    records, _ = encoded(data({"mapping_sha256": digest}), found, "a")

    assert records.features.tolist() == [[0.0, 1.0, -1.0]]
    assert gene_name(" ensg00000141510.17 ", "ensembl") == "ENSG00000141510"
    with pytest.raises(DataError, match="digest"):
        encoded(data({"mapping_sha256": "0" * 64}), found, "a")


@pytest.mark.parametrize(
    ("header", "changes", "expected"),
    [
        ("id,TP53,x", {}, "none of BRCA1"),
        ("id,TP53,tp53", {"genes": ["TP53"]}, "more than one column of TP53"),
    ],
)
def test_a_gene_that_is_absent_or_there_twice_is_named(
    header: str, changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    path = matrix(tmp_path / "m.csv", [header, "a,1,2"])

    with pytest.raises(DataError, match=expected):
        encoded(data(changes), file(path), "a")


def test_another_scale_than_the_study_s_is_refused_unless_it_can_be_converted(
    tmp_path: Path,
) -> None:
    path = matrix(tmp_path / "m.csv", ["id,TP53,BRCA1", "a,255,0"])

    with pytest.raises(DataError, match="log2-tpm"):
        encoded(data(), file(path, scale="counts"), "a")
    assert encoded(data(), file(path, scale="tpm"), "a")[0].features.tolist() == [[0.0, 0.0, -1.0]]


def test_counts_are_parts_of_the_patient_s_own_million(tmp_path: Path) -> None:
    path = matrix(tmp_path / "m.csv", ["id,TP53,BRCA1,x", "a,255,0,999745", "b,1,1,0"])

    records, _ = encoded(data({"scale": "counts"}), file(path, scale="counts"), "a", "b")

    assert records.features[0].tolist() == [0.0, 0.0, -1.0]
    assert (records.features[1, 1:] == 1.0).all()  # clipped: half a million of a million


@pytest.mark.parametrize(
    ("scale", "values", "fits"),
    [
        ("counts", [0, 5, 1200], True),
        ("counts", [0.5, 2], False),
        ("counts", [-1, 2], False),
        ("tpm", [0, 900_000.5], True),
        ("tpm", [-0.1, 3], False),
        ("log2-tpm", [0, 14.5], True),
        ("log2-tpm", [0, 1200], False),
        ("z-score", [-3.1, 7378], True),
        ("z-score", [1.5] * 200, False),
        ("copy-number", [-2, 0, 2], True),
        ("copy-number", [0, 7], False),
        ("copy-number", [0.3], False),
        ("beta", [0, 0.7, 1], True),
        ("beta", [0, 1.5], False),
        ("z-score", [float("nan")], False),
    ],
)
def test_scales_are_told_apart(scale: Any, values: list[float], fits: bool) -> None:
    if fits:
        check_scale(np.array(values, dtype=np.float64), scale, layer="rna")
        return
    with pytest.raises(DataError, match=scale):
        check_scale(np.array(values, dtype=np.float64), scale, layer="rna")


def test_one_patient_on_another_scale_is_absent_and_no_other_changes(tmp_path: Path) -> None:
    good = matrix(tmp_path / "m.csv", ["id,TP53,BRCA1", "a,16,0", "b,1,2"])
    mixed = matrix(
        tmp_path / "n.csv",
        ["id,TP53,BRCA1", "a,16,0", "c,5210,1", "b,1,2", "d,1,2", "d,1,2", "e,1", "f,x,2"],
    )

    alone, none = encoded(data(), file(good), "a", "b")
    beside, absent = encoded(data(), file(mixed), "a", "c", "d", "e", "f", "b")

    assert (none, absent) == (0, 4)
    assert alone.features.tobytes() == beside.features.tobytes()
    with pytest.raises(DataError, match="log2-tpm") as refused:
        encoded(data(), file(mixed), "c", strict=True)
    assert "5210" not in str(refused.value)


def test_a_patient_without_a_layer_is_absent_or_in_the_middle(tmp_path: Path) -> None:
    path = matrix(tmp_path / "m.csv", ["id,TP53,BRCA1", "a,16,0"])

    assert encoded(data(), file(path), "a", "b")[1] == 1
    filled, absent = encoded(data({"missing": "fill"}), file(path), "a", "b")
    assert absent == 0
    assert filled.features[1].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_anndata_files_have_the_numbers_of_a_table(kind: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    values = np.array([[16.0, 0.0], [1.0, 2.0]], dtype=np.float32)
    path = tmp_path / "m.h5ad"
    with h5py.File(path, "w") as out:
        for frame, names in (("obs", ["a", "b"]), ("var", list(GENES))):
            group = out.create_group(frame)
            group.attrs["_index"] = "_index"
            group["_index"] = names
        if kind == "dense":
            out["X"] = values
        else:
            lines = values if kind == "csr" else values.T
            group = out.create_group("X")
            group.attrs["encoding-type"] = f"{kind}_matrix"
            group["data"] = lines[lines != 0]
            group["indices"] = np.nonzero(lines)[1]
            group["indptr"] = np.concatenate([[0], np.cumsum((lines != 0).sum(axis=1))])

    found = read_matrix(path)

    assert list(found.patients) == ["a", "b"]
    assert list(found.genes) == list(GENES)
    assert (found.values == values).all()


def test_a_parquet_file_has_the_numbers_of_a_table(tmp_path: Path) -> None:
    import duckdb

    path = matrix(tmp_path / "m.csv", ["id,TP53,BRCA1", "a,16,0", "b,1,2"])
    other = tmp_path / "m.parquet"
    duckdb.sql(f"COPY (SELECT * FROM read_csv('{path}')) TO '{other}' (FORMAT parquet)")

    one, two = read_matrix(path), read_matrix(other)

    assert list(one.patients) == list(two.patients)
    assert one.values.tobytes() == two.values.tobytes()


@pytest.mark.parametrize("name", ["m.csv", "m.h5ad", "m.parquet"])
def test_what_is_no_matrix_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file|Parquet"):
        read_matrix(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff\xfe secret")
    with pytest.raises(DataError) as refused:
        read_matrix(tmp_path / name)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"no_patient_key": True},
        {"layers": [], "clinical": []},
        {"label": {"answers": ["a", "b"]}},
        {"layers": [{"name": "rna", "scale": "beta", "genes": ["A", "A"]}]},
        {"missing": "fill"},
    ],
    ids=["nobody's", "nothing", "assays", "a gene twice", "no fill value"],
)
def test_a_schema_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        data(**changes)
