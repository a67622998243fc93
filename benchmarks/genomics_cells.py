"""Types of blood cells from their expression: 700 cells (pbmc68k_reduced) over three sites.

    python -m benchmarks.genomics_cells --wheels FOLDER --out runs/bench-cells.json

The file that scanpy ships is read by the sites' own reader of AnnData: 765 genes as z-scores, which
its makers took over all cells of the set, so that they are a public reference here. Ten types; a
cell's site and whether it is held out are by public hashes of its barcode. Each cell counts as a
patient: nothing says whose cells they are, so that epsilon is per cell and NOT per patient. Plans
within epsilon 8 were chosen among twelve on training cells; the others are first guesses.
"""

import argparse
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import torch

from benchmarks.genomics_omics import Plan, Rows, bench, share, study_of
from benchmarks.wheel_data import packaged, skipped
from fedward_common.ids import SiteId
from fedward_common.study.profile_encoding import LayerFile
from fedward_common.study.spec import StudySpec

MEMBER: Final = "datasets/10x_pbmc68k_reduced.h5ad"
SITES: Final = 3
LAYER: Final = "rna"
PLANS: Final = {
    "logistic regression": Plan(
        model={"name": "linear", "outputs": 10},
        rounds=30,
        rate=1e-2,
        decay=0.1,
        private={"rounds": 150, "q": 0.5, "clip": 1.0, "rate": 0.03, "backend": "auto"},
    ),
    "MLP": Plan(
        model={"name": "mlp", "hidden": [32], "outputs": 10},
        rounds=30,
        rate=3e-3,
        decay=0.1,
        private={"rounds": 150, "q": 0.5, "clip": 1.0, "rate": 0.03, "backend": "auto"},
    ),
}


def cells(content: bytes) -> tuple[Rows, Sequence[str], Sequence[str]]:
    """The cells over the sites as rows of their tables, the genes, and the types of cells."""
    with h5py.File(io.BytesIO(content), "r") as file:
        about, genes = file["obs"][...], [one.decode() for one in file["var"]["index"]]
        # A study's classes are letters, digits and spaces: CD34+ is CD34, a slash is a space.
        types = [
            one.decode().replace("+", "").replace("/", " ")
            for one in file["uns/bulk_labels_categories"]
        ]
    sites: dict[SiteId, list[dict[str, str]]] = {SiteId(f"site-{k}"): [] for k in range(SITES)}
    for one in about:
        barcode = one["index"].decode()
        held_out = share(barcode, salt="pbmc/held-out/v1") < 0.25
        sites[SiteId(f"site-{int(SITES * share(barcode, salt='pbmc/sites/v1'))}")].append(
            {
                "patient_id": barcode,
                "type": types[one["bulk_labels"]],
                "split": "test" if held_out else "train",
            }
        )
    return sites, genes, types


def study(rows: Rows, plan: Plan, *, genes: Sequence[str], types: Sequence[str]) -> StudySpec:
    """The study of one model of the cells' types."""
    data: dict[str, Any] = {
        "kind": "profiles",
        "layers": [{"name": LAYER, "scale": "z-score", "genes": genes, "weight": 0.3}],
        "label": {"column": "type", "classes": types},
        "split": {"kind": "column", "column": "split"},
    }
    return study_of(
        "cells",
        rows,
        plan,
        task="expression-classification",
        data=data,
        unit="patient",
        genomic=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, help="the folder where the package's wheel lies")
    parser.add_argument("--seeds", type=int, default=10, help="runs without noise")
    parser.add_argument("--draws", type=int, default=10, help="runs within epsilon 8")
    parser.add_argument("--only", help="models whose name holds this")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    content = packaged("scanpy", MEMBER, project="scanpy", wheels=options.wheels)
    if content is None:
        print(skipped("scanpy", licence="BSD-3-Clause"))
        return
    rows, genes, types = cells(content)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        path.write_bytes(content)
        layer = LayerFile(layer=LAYER, path=path, scale="z-score", identifiers="hgnc")
        bench(
            PLANS,
            rows,
            lambda own, plan: study(own, plan, genes=genes, types=types),
            options=options,
            layers=[layer],
        )


if __name__ == "__main__":
    main()
