"""A study of whole patients' time until an event, and the folders of its made-up sites."""

import csv
from pathlib import Path

from tests.support.row_studies import profiles
from tests.support.studies import write_table

WHOLE_SURVIVAL = """
[task]
kind = "survival"
likelihood = "proportional-hazards"
cuts = [365.0, 730.0, 1460.0]
horizon_days = 730.0
[model]
name = "proportional-hazards"
outputs = 3
[model.fusion]
how = "concatenation"
width = 4
[[model.fusion.encoders]]
modality = "table"
name = "linear"
[[model.fusion.encoders]]
modality = "tissue"
name = "linear"
[[releases]]
kind = "binned-scores"
bins = 4
noise_multiplier = 4.0
[data]
kind = "multimodal"
label_from = "table"
[data.split]
kind = "hash"
salt = "whole-survival"
held_out = 0.4
[[data.modalities]]
name = "table"
[data.modalities.data]
kind = "tabular"
patient_key = "patient_id"
[[data.modalities.data.columns]]
name = "age"
type = "number"
unit = "years"
low = 20.0
high = 100.0
[data.modalities.data.label]
column = "days"
event_column = "dead"
longest_days = 1460.0
[[data.modalities]]
name = "tissue"
[data.modalities.data]
kind = "profiles"
[[data.modalities.data.layers]]
name = "rna"
scale = "z-score"
genes = ["G0", "G1", "G2", "G3"]
"""


def whole_survival_site(folder: Path, *, seed: int, tissue: bool = True) -> None:
    """A folder for each modality; the first gene shortens the time, which only the table has."""
    path = profiles(folder / "table" / "patients.csv", seed=seed)
    path.with_name("cn.csv").unlink()
    rna = path.with_name("rna.csv")
    if tissue:
        with path.open(newline="") as file:
            people = [{"patient_id": row["patient_id"]} for row in csv.DictReader(file)]
        write_table(folder / "tissue" / "patients.csv", people)
        rna.rename(folder / "tissue" / "rna.csv")
    else:
        rna.unlink()
