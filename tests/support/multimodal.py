"""Studies of several modalities for tests: a small image, a table and four loci."""

from typing import Any

from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.spec import StudySpec
from tests.support.genotype_studies import loci
from tests.support.studies import make_data, make_document, make_dp

SPLIT = {"kind": "hash", "salt": "x", "held_out": 0.3}
SIZE = 8
CUTS = [100.0, 400.0, 900.0]
TIMES = {"column": "days", "event_column": "dead", "longest_days": 900.0}
INPUTS = {"image": SIZE * SIZE, "table": 3, "genome": 4}


def modalities(**changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The data of each modality without a split; `changes` replace keys of one by its name."""
    table = make_data()
    del table["split"]
    data = {
        "image": {"kind": "plain-image", "height": SIZE, "width": SIZE},
        "table": table,
        "genome": {"kind": "genotypes", "build": "GRCh37", "loci": loci()},
    }
    return [{"name": name, "data": one | changes.get(name, {})} for name, one in data.items()]


def multimodal_data(**changes: Any) -> dict[str, Any]:
    """Three modalities; the label is in the table."""
    return {
        "kind": "multimodal",
        "modalities": modalities(),
        "label_from": "table",
        "split": SPLIT,
    } | changes


def schema(**changes: Any) -> MultimodalData:
    """The schema of `multimodal_data`."""
    return MultimodalData.model_validate(multimodal_data(**changes))


def fusion(how: str = "gated", **changes: Any) -> dict[str, Any]:
    """A small encoder for each modality."""
    encoders = [
        {"modality": "image", "name": "cnn", "hidden": [4], "shape": [1, SIZE, SIZE]},
        {"modality": "table", "name": "mlp", "hidden": [5]},
        {"modality": "genome", "name": "linear"},
    ]
    sized = [{**one, "inputs": INPUTS[str(one["modality"])]} for one in encoders]
    return {"how": how, "width": 3, "encoders": sized} | changes


def model(how: str = "gated", **changes: Any) -> dict[str, Any]:
    """A model of the three."""
    return {"name": "multimodal", "fusion": fusion(how)} | changes


def multimodal_study(*, how: str = "gated", **changes: Any) -> StudySpec:
    """A valid study of three modalities."""
    return StudySpec.model_validate(
        make_document(
            **{
                "task": {"kind": "multimodal"},
                "model": model(how),
                "data": multimodal_data(),
                "genomic": True,
                **changes,
            }
        )
    )


def survival_study(
    *, likelihood: str = "proportional-hazards", how: str = "gated", **changes: Any
) -> StudySpec:
    """The same patients' time until an event, by proportional hazards unless said otherwise."""
    name = likelihood if likelihood == "proportional-hazards" else "multimodal"
    task = {"kind": "survival", "likelihood": likelihood, "cuts": CUTS, "horizon_days": 400.0}
    settings = {
        "task": task,
        "model": model(how, name=name, outputs=len(CUTS)),
        "data": multimodal_data(modalities=modalities(table={"label": TIMES})),
    }
    return multimodal_study(**(settings | changes))


KIN: dict[str, Any] = {
    "data": multimodal_data(modalities=modalities(genome={"family_key": "family"})),
    "dp": make_dp(unit="family", max_records_per_patient=3),
}
"""What makes of `multimodal_study` one whose privacy unit is a family."""
