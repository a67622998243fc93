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


def put_matrix(out: Any, values: np.ndarray, *, kind: str, said: dict[str, str]) -> None:
    """`X` of an AnnData file: dense, or compressed by rows or columns with `said` of it."""
    if kind == "dense":
        out["X"] = values
        return
    lines = values if kind == "csr" else values.T
    group = out.create_group("X")
    group.attrs.update(said)
    group["data"] = lines[lines != 0]
    group["indices"] = np.nonzero(lines)[1]
    group["indptr"] = np.concatenate([[0], np.cumsum((lines != 0).sum(axis=1))])


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
        put_matrix(out, values, kind=kind, said={"encoding-type": f"{kind}_matrix"})

    found = read_matrix(path)

    assert list(found.patients) == ["a", "b"]
    assert list(found.genes) == list(GENES)
    assert (found.values == values).all()


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_anndata_files_from_before_its_format_had_a_version_are_read(
    kind: str, tmp_path: Path
) -> None:
    """Data frames were tables of records then; scanpy still ships `pbmc68k_reduced` as such."""
    h5py = pytest.importorskip("h5py")
    values = np.array([[16.0, 0.0], [1.0, 2.0]], dtype=np.float32)
    path = tmp_path / "m.h5ad"
    with h5py.File(path, "w") as out:
        for frame, names in (("obs", [b"a", b"b"]), ("var", [one.encode() for one in GENES])):
            records = [(name, 7) for name in names]
            out[frame] = np.array(records, dtype=[("index", "S8"), ("n_counts", "<i8")])
        put_matrix(out, values, kind=kind, said={"h5sparse_format": kind})

    found = read_matrix(path)

    assert list(found.patients) == ["a", "b"]
    assert list(found.genes) == list(GENES)
    assert (found.values == values).all()


@pytest.mark.parametrize("what", ["no index", "too many", "no records"])
def test_an_old_anndata_file_without_a_list_of_names_is_refused(what: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = anndata(tmp_path / "m.h5ad")
    with h5py.File(path, "a") as out:
        del out["obs"]
        match what:
            case "no index":
                out["obs"] = np.array([(b"a",), (b"b",)], dtype=[("name", "S8")])
            case "too many":
                names = np.dtype([("index", "S8")])
                out.create_dataset("obs", (1 << 40,), names, chunks=(1024,), compression="gzip")
            case _:
                out["obs"] = np.array([b"a", b"b"])

    with pytest.raises(DataError, match="none that can be read"):
        read_matrix(path)


def test_a_parquet_file_has_the_numbers_of_a_table(tmp_path: Path) -> None:
    import duckdb

    path = matrix(tmp_path / "m.csv", ["id,TP53,BRCA1", "a,16,0", "b,1,2"])
    other = tmp_path / "m.parquet"
    duckdb.sql(f"COPY (SELECT * FROM read_csv('{path}')) TO '{other}' (FORMAT parquet)")

    one, two = read_matrix(path), read_matrix(other)

    assert list(one.patients) == list(two.patients)
    assert one.values.tobytes() == two.values.tobytes()


@pytest.mark.parametrize("broken", [b'b,"16,0', b"b\xff,16,0", b"b," + b"1" * 200_000 + b",0"])
def test_a_line_that_cannot_be_read_touches_no_other_patient(broken: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b"id,TP53,BRCA1\na,16,0\n" + broken + b"\nc,0,16\n")

    records, absent = encoded(data(), file(path), "a", "b", "c")

    assert absent == 1
    assert records.features.tolist() == [[0.0, 1.0, -1.0], [0.0, -1.0, 1.0]]


@pytest.mark.parametrize("text", ["1_6", "inf", "nan", "\u0661", ""])
def test_what_only_python_calls_a_number_is_none(text: str, tmp_path: Path) -> None:
    path = matrix(tmp_path / "m.csv", ["id,TP53,BRCA1", f"a,{text},0", "b,16,0"])

    assert np.isnan(read_matrix(path).values[0, 0])
    assert encoded(data(), file(path), "a", "b")[1] == 1


def anndata(path: Path, **parts: Any) -> Path:
    """A sparse AnnData file [2, 2] whose parts of X, or obs, are replaced by `parts`."""
    h5py = pytest.importorskip("h5py")
    values: dict[str, Any] = {
        "data": [16.0, 1.0, 2.0], "indices": [0, 0, 1], "indptr": [0, 1, 3],
    }  # fmt: skip
    with h5py.File(path, "w") as out:
        for frame, names in (("obs", ["a", "b"]), ("var", list(GENES))):
            group = out.create_group(frame)
            group.attrs["_index"] = "_index"
            group["_index"] = names
        group = out.create_group("X")
        group.attrs["encoding-type"] = "csr_matrix"
        for name, found in (values | parts).items():
            group[name] = found
    return path


@pytest.mark.parametrize(
    "parts",
    [
        {"indices": [0, 0, -1]},
        {"indices": [0, 0, 2]},
        {"indices": [0.0, 0.0, 1.0]},
        {"indices": [0, 0]},
        {"indptr": [0, 3, 1]},
        {"indptr": [-1, 1, 3]},
        {"indptr": [0, 1, 30]},
        {"indptr": [0, 1]},
        {"indptr": [[0, 1, 3]]},
    ],
)
def test_a_sparse_matrix_whose_places_are_none_of_its_own_is_refused(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="none that can be read"):
        read_matrix(anndata(tmp_path / "m.h5ad", **parts))


def test_a_place_that_stands_twice_in_a_sparse_matrix_is_the_sum(tmp_path: Path) -> None:
    found = read_matrix(anndata(tmp_path / "m.h5ad", indices=[0, 1, 1]))

    assert found.values.tolist() == [[16.0, 0.0], [0.0, 3.0]]


@pytest.mark.parametrize("what", ["link", "soft", "external", "virtual"])
def test_nothing_is_read_that_lies_in_another_file(what: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    other = anndata(tmp_path / "other.h5ad")
    path = anndata(tmp_path / "m.h5ad")
    (tmp_path / "secret").write_bytes(np.full(4, 7.0, dtype=np.float32).tobytes())
    with h5py.File(other, "a") as out:
        out["dense"] = np.full((2, 2), 7.0, dtype=np.float32)
    with h5py.File(path, "a") as out:
        del out["X"]
        match what:
            case "link":
                out["X"] = h5py.ExternalLink(str(other), "/dense")
            case "soft":
                out["X"] = h5py.SoftLink("/obs/_index")
            case "external":
                out.create_dataset(
                    "X", (2, 2), "f4", external=[(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
                )
            case _:
                layout = h5py.VirtualLayout((2, 2), "f4")
                layout[...] = h5py.VirtualSource(str(other), "dense", (2, 2), "f4")
                out.create_virtual_dataset("X", layout)

    with pytest.raises(DataError, match="none that can be read"):
        read_matrix(path)


@pytest.mark.parametrize("of", ["obs", "texts", "X"])
def test_a_small_file_that_claims_more_than_fits_is_refused_before_it_is_read(
    of: str, tmp_path: Path
) -> None:
    h5py = pytest.importorskip("h5py")
    path = anndata(tmp_path / "m.h5ad")
    with h5py.File(path, "a") as out:
        if of == "X":
            del out["X"]
            out.create_dataset("X", (1 << 40, 2), "f4", chunks=(1024, 2), compression="gzip")
        elif of == "texts":
            del out["obs/_index"]
            out.create_dataset("obs/_index", (1 << 20,), "S65536", chunks=(1,), compression="gzip")
        else:
            del out["obs/_index"]
            out.create_dataset("obs/_index", (1 << 40,), "i8", chunks=(1024,), compression="gzip")
    assert path.stat().st_size < 1 << 16

    with pytest.raises(DataError, match="none that can be read"):
        read_matrix(path)


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
