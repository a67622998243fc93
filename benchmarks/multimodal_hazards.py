"""Whole patients of TCGA by proportional hazards: the risk score of a `multimodal` model, nested.

    python -m benchmarks.multimodal_hazards --data FOLDER --out runs/bench-multimodal-hazards.json

Clinical columns, RNA and copy number over the hospitals of `genomics_tcga`, once as modalities with
an encoder each and once side by side in a linear model (`profiles`). A run deals all patients anew
into five folds by a public hash (the first run has those of `genomics_tcga`) and begins with other
weights. In each fold the plan is chosen by three inner folds of its training patients, alike for
both models, so that nobody who is held out decides anything; choosing is not charged. The figure of
a run is the mean of Harrell's C over the folds, each over all sites' held-out patients together.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.facts import facts
from benchmarks.genomics_breast import parted
from benchmarks.genomics_omics import EPSILON, Plan, Rows, share, study_of
from benchmarks.genomics_tcga import (
    CLINICAL,
    CUTS,
    FOLDS,
    MODEL,
    SUFFIXES,
    dealt,
    encoded,
    genes,
    matrix_files,
    read,
)
from benchmarks.omics_runs import Tables, distributed, pooled_path, privacy, rehearsed
from fedward_common.arrays import Tensors
from fedward_common.ids import SiteId
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.multimodal_encoding import join
from fedward_common.study.profile_encoding import LayerFile
from fedward_common.study.row_encoding import encode_rows
from fedward_common.study.row_readers import readers_of
from fedward_common.study.spec import StudySpec
from fedward_server.sandbox.figures import concordance, scores

INNER: Final = 3
CANCERS: Final = ("luad", "blca")
LABEL: Final = {"column": "days", "event_column": "dead", "longest_days": CUTS[-1]}
HASHED: Final = {"kind": "hash", "salt": "none", "held_out": 1e-12}
LINEAR: Final = "linear"
CLINICAL_COLUMNS: Final = "clinical"
TASK: Final = {
    "kind": "survival",
    "likelihood": "proportional-hazards",
    "cuts": list(CUTS),
    "horizon_days": 1096.0,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Try:
    """A plan that a fold may choose: of the linear model, or a fusion with encoders of a width.

    `marks` are numbers of steps, of which a fold chooses one as well; one of them within epsilon 8.
    """

    how: str
    width: int = 0
    weight: float = 0.1
    rate: float
    decay: float = 0.0
    momentum: float | None = None
    """Gradient descent with it, and not Adam."""
    marks: tuple[int, ...]
    inputs: tuple[str, ...] = (CLINICAL_COLUMNS, *SUFFIXES)


MARKS: Final = (25, 50, 100, 200, 300)
PLAIN: Final[Mapping[str, Sequence[Try]]] = {
    "multimodal": [
        Try(how=how, width=width, rate=3e-3, decay=0.1, marks=MARKS)
        for how, width in (
            ("concatenation", 2),
            ("concatenation", 8),
            ("gated", 8),
            ("attention", 8),
        )
    ],
    "linear": [
        Try(how=LINEAR, rate=rate, decay=0.1, marks=MARKS) for rate in (1e-3, 3e-3, 1e-2)
    ],
}  # fmt: skip
PRIVATE: Final[Mapping[str, Sequence[Try]]] = {
    "multimodal": [
        Try(how="concatenation", width=width, rate=rate, marks=(30,))
        for width in (2, 8)
        for rate in (0.003, 0.01, 0.03)
    ],
    "linear": [Try(how=LINEAR, rate=rate, marks=(30,)) for rate in (0.003, 0.01, 0.03, 0.1)],
}
Fit = Callable[[StudySpec, Tables, Try], Mapping[int, Tensors]]
"""(study, training patients, plan) -> the model at each of the plan's marks."""


def study(rows: Rows, patients: Sequence[Mapping[str, str]], plan: Try, *, seed: int) -> StudySpec:
    """The study of a plan: several modalities, or all inputs side by side."""
    layers = [
        {"name": name, "scale": scale, "genes": genes(patients, name), "weight": plan.weight}
        for name, (_, scale) in SUFFIXES.items()
        if name in plan.inputs
    ]
    columns = CLINICAL if CLINICAL_COLUMNS in plan.inputs else []
    side_by_side = {"kind": "profiles", "missing": "fill", "clinical": columns, "label": LABEL}
    if plan.how == LINEAR:
        split = {"kind": "column", "column": "split"}
        data: dict[str, Any] = {**side_by_side, "layers": layers, "split": split}
        model: dict[str, Any] = dict(MODEL)
    else:
        data = modalities({"clinical": side_by_side, **{
            str(one["name"]): {"kind": "profiles", "label": LABEL, "layers": [one]}
            for one in layers
        }})  # fmt: skip
        model = {**MODEL, "fusion": fusion(data, plan)}
    private = {"rounds": plan.marks[-1], "q": 0.5, "clip": 0.5, "rate": plan.rate}
    spec = study_of(
        "tcga",
        rows,
        Plan(model=model, rounds=1, rate=1.0, decay=0.0, private=private),
        task=TASK,
        data=data,
        unit="patient",
        genomic=True,
    )
    own = spec.model.model_copy(update={"initial_seed": seed})
    return spec.model_copy(update={"model": own})


def modalities(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The data of whole patients; the label is with the clinical columns."""
    return {
        "kind": "multimodal",
        "modalities": [
            {"name": name, "data": {**part, "split": HASHED}} for name, part in parts.items()
        ],
        "label_from": "clinical",
        "split": HASHED,
    }


def fusion(data: Mapping[str, Any], plan: Try) -> dict[str, Any]:
    """A linear encoder for each modality, and how they become one risk score."""
    parts = MultimodalData.model_validate(data).parts
    encoders = [
        {"modality": name, "name": "linear", "inputs": part.input_size}
        for name, part in parts.items()
    ]
    return {"how": plan.how, "width": plan.width, "encoders": encoders}


def tables(spec: StudySpec, rows: Rows, layers: Sequence[LayerFile]) -> Tables:
    """Every patient of every site, by the sites' own encoding and joining."""
    schema = spec.data
    if not isinstance(schema, MultimodalData):
        return encoded(spec, rows, layers)
    parts: dict[SiteId, dict[str, Any]] = {site: {} for site in rows}
    for name, part in schema.parts.items():
        if not isinstance(part, LabelledRows):
            raise TypeError("expected profiles")
        own = [one for one in layers if one.layer == name]
        readers = readers_of(part, layers=own)
        for site, of_site in rows.items():
            parts[site][name], absent = encode_rows(part, of_site, readers.features, part="train")
            if absent:
                raise ValueError("expected every patient to fit")
    return {site: join(schema, found) for site, found in parts.items()}


def places(rows: Rows, found: Tables, folds: int, salt: str) -> dict[SiteId, Any]:
    """Each patient's fold by a public hash, in the order of the records."""
    return {
        site: np.array([int(folds * share(name, salt=salt)) for name in _names(found[site], own)])
        for site, own in rows.items()
    }


def _names(records: Any, own: Sequence[Mapping[str, str]]) -> Sequence[str]:
    return records.ids or [row["patient_id"] for row in own]


def plain(spec: StudySpec, training: Tables, plan: Try) -> Mapping[int, Tensors]:
    """The models without noise at each mark."""
    return pooled_path(
        spec,
        training,
        marks=plan.marks,
        rate=plan.rate,
        decay=plan.decay,
        momentum=plan.momentum,
    )


def noised(spec: StudySpec, training: Tables, plan: Try) -> Mapping[int, Tensors]:
    """The model within epsilon 8, by the sites' trainers."""
    # As sites do: `bookkeeping` where it proves itself here, else `loop`.
    return {plan.marks[-1]: distributed(spec, training, backend="auto")}


def nearly_noised(spec: StudySpec, training: Tables, plan: Try) -> Mapping[int, Tensors]:
    """The like of it, to choose a plan with."""
    return {plan.marks[-1]: rehearsed(spec, training)}


def c_index(spec: StudySpec, model: Tensors, judged: Tables) -> float:
    """Harrell's C over all sites' patients together."""
    risk = np.concatenate([scores(spec, model, one) for one in judged.values()])
    concordant, comparable = concordance(risk, np.concatenate([r.labels for r in judged.values()]))
    return concordant / comparable


def chosen(
    specs: Mapping[Try, StudySpec],
    found: Mapping[Try, Tables],
    within: Mapping[SiteId, Any],
    fit: Fit,
) -> tuple[Try, int]:
    """The plan and its mark that are best in the mean of the inner folds."""
    worth: Counter[tuple[Try, int]] = Counter()
    for plan, spec in specs.items():
        for part in range(INNER):
            training, judged = parted(found[plan], within, part)
            for mark, model in fit(spec, training, plan).items():
                worth[plan, mark] += c_index(spec, model, judged)  # type: ignore[assignment]
    return max(worth, key=lambda one: worth[one])


def run_of(
    rows: Rows,
    patients: Sequence[Mapping[str, str]],
    found: Mapping[Try, Tables],
    *,
    run: int,
    fits: tuple[Fit, Fit],
) -> tuple[float, list[str]]:
    """The mean C of the folds of a run, and what each fold chose."""
    choose_by, fit = fits
    specs = {plan: study(rows, patients, plan, seed=run) for plan in found}
    one = next(iter(found.values()))
    outer = places(rows, one, FOLDS, f"tcga/folds/v{run}")
    inner = places(rows, one, INNER, f"tcga/inner/v{run}")
    values, plans = [], []
    for fold in range(FOLDS):
        within = {site: np.where(outer[site] == fold, -1, inner[site]) for site in outer}
        plan, mark = chosen(specs, found, within, choose_by)
        training, held_out = parted(found[plan], outer, fold)
        values.append(c_index(specs[plan], fit(specs[plan], training, plan)[mark], held_out))
        plans.append(f"{plan.how} {plan.width} {plan.weight:g} rate {plan.rate:g} steps {mark}")
    return float(np.mean(values)), plans


def bench(
    cancer: str, *, options: argparse.Namespace, write: Callable[[Any], None]
) -> dict[str, Any]:
    """Both models without noise and within epsilon 8, written as it goes."""
    patients = read(options.data, cancer)
    rows = dealt(patients)
    result: dict[str, Any] = {"sites": {site: len(own) for site, own in rows.items()}}
    for name, runs, grid, fits in (
        ("without_noise", options.runs, PLAIN, (plain, plain)),
        ("epsilon_8", options.private, PRIVATE, (nearly_noised, noised)),
    ):
        for arm, plans in grid.items():
            if not runs or (options.only and options.only not in arm):
                continue
            tried = [smallest(one) for one in plans[:1]] if options.quick else plans
            with tempfile.TemporaryDirectory() as folder:
                layers = matrix_files(patients, Path(folder))
                found = encodings(rows, patients, tried, layers)
            values, counts = [], Counter[str]()
            for run in range(1, runs + 1):
                start = time.perf_counter()
                value, taken = run_of(rows, patients, found, run=run, fits=fits)
                values.append(value)
                counts.update(taken)
                print(f"{cancer} {arm} {name} run {run}: {value:.4f}, "
                      f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
                own = {**spread(values), "chosen": dict(counts)}
                if name == "epsilon_8":
                    own |= privacy(study(rows, patients, tried[0], seed=1))
                result.setdefault(arm, {})[name] = own
                write(result)
            print(cancer, arm, name, json.dumps(result[arm][name]), flush=True)
    return result


def encodings(
    rows: Rows,
    patients: Sequence[Mapping[str, str]],
    plans: Sequence[Try],
    layers: Sequence[LayerFile],
) -> dict[Try, Tables]:
    """The patients' records for each plan; plans of equal data share them."""
    known: dict[tuple[bool, float, tuple[str, ...]], Tables] = {}
    for plan in plans:
        if _data(plan) not in known:
            known[_data(plan)] = tables(study(rows, patients, plan, seed=1), rows, layers)
    return {plan: known[_data(plan)] for plan in plans}


def _data(plan: Try) -> tuple[bool, float, tuple[str, ...]]:
    """What a plan's records depend on."""
    return plan.how == LINEAR, plan.weight, plan.inputs


def smallest(plan: Try) -> Try:
    """The least of a plan: three steps."""
    return Try(how=plan.how, width=plan.width, rate=plan.rate, decay=plan.decay, marks=(3,))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, SD and least over the runs."""
    return {
        "c_index": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "min": min(values),
        "runs": len(values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=10, help="without noise; 0: none")
    parser.add_argument("--epsilon-8", type=int, default=3, metavar="RUNS", dest="private")
    parser.add_argument("--cancer", choices=CANCERS)
    parser.add_argument("--only", help="models whose name holds this: multimodal, linear")
    parser.add_argument("--quick", action="store_true", help="one plan of three steps: no figure")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    start = time.perf_counter()
    result: dict[str, Any] = {
        **facts(("torch", "numpy", "opacus")),
        "epsilon": EPSILON,
        "cancers": {},
    }

    def write(cancer: str, found: Any) -> None:
        result["cancers"][cancer] = found
        result["seconds"] = time.perf_counter() - start
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=2) + "\n")

    for cancer in (options.cancer,) if options.cancer else CANCERS:
        bench(cancer, options=options, write=lambda found, name=cancer: write(name, found))


if __name__ == "__main__":
    main()
