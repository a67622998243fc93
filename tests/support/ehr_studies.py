"""Study files of clinical data for end-to-end tests, and the folders of their made-up sites."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.support import synthea
from tests.support.ehr_cohorts import bundles, table
from tests.support.row_studies import (
    DRUG_TARGETS,
    MOLECULES,
    PROFILES,
    SEQUENCES,
    drug_targets,
    molecules,
    profiles,
    sequences,
)
from tests.support.studies import write_table
from tests.support.whole_survival import WHOLE_SURVIVAL, whole_survival_site

SITES = ("north", "east", "south")
STUDY = """
id = "ehr"
title = "Made-up records of three hospitals"
rounds = 2
local_steps = 4
quorum = 3
deadline_seconds = 120

[dp]
kind = "dp-sgd"
epsilon = 8.0
delta = 1e-4
clip_norm = 1.0
sampling_probability = 0.5
max_records_per_patient = 1

[training]
learning_rate = 0.5

[aggregation]
name = "fedavg"
"""
TABLE = """
[data]
kind = "tabular"
patient_key = "patient_id"
[[data.columns]]
name = "age"
type = "number"
unit = "years"
low = 20.0
high = 100.0
[[data.columns]]
name = "marker"
type = "number"
unit = "1"
low = -1.0
high = 1.0
[data.split]
kind = "column"
column = "split"
"""
EVALUATION = """
[[releases]]
kind = "binned-scores"
bins = 4
noise_multiplier = 4.0
"""
REGRESSION = (
    STUDY
    + TABLE
    + """
[data.label]
column = "score"
unit = "points"
low = 0.0
high = 100.0
[task]
kind = "tabular-regression"
[model]
name = "linear"
[[releases]]
kind = "value-scores"
bins = 5
noise_multiplier = 2.0
"""
)
GROUPED = """
[[releases]]
kind = "grouped-scores"
bins = 4
noise_multiplier = 2.0
threshold = 0.4
[[releases.groupings]]
by = "age"
cuts = [60.0]
"""
SURVIVAL = (
    STUDY
    + TABLE
    + GROUPED
    + """
[data.label]
column = "days"
event_column = "dead"
longest_days = 3000.0
[task]
kind = "survival"
likelihood = "proportional-hazards"
cuts = [365.0, 730.0, 1460.0, 3000.0]
horizon_days = 730.0
[model]
name = "proportional-hazards"
outputs = 4
"""
)
SERIES = (
    STUDY.replace("local_steps = 4", "local_steps = 2")
    + EVALUATION
    + """
[task]
kind = "timeseries-classification"
[model]
name = "gru"
hidden = [4]
steps = 4
[data]
kind = "clinical"
[data.cohort.index]
concepts = ["LOINC:11450-4"]
[data.grid]
step_hours = 2.0
steps = 4
[[data.features]]
type = "measured"
name = "pulse"
concepts = ["LOINC:8867-4"]
unit = "/min"
aggregation = "sequence"
low = 30.0
high = 200.0
missing = "fill"
fill = 80.0
[[data.features]]
type = "measured"
name = "systolic"
concepts = ["LOINC:8480-6"]
unit = "mm[Hg]"
aggregation = "sequence"
low = 50.0
high = 250.0
missing = "fill"
fill = 120.0
[[data.features]]
type = "sex"
[data.outcome]
kind = "event"
concepts = ["SNOMED:91302008"]
window = { to_days = 30.0 }
[data.split]
kind = "hash"
salt = "e2e"
held_out = 0.5
"""
)

ALIKE = (
    STUDY.replace(
        "learning_rate = 0.5", "learning_rate = 0.5\n[training.pseudo_labels]\nconfidence = 0.6"
    )
    + TABLE.replace('kind = "tabular"', 'kind = "tabular"\nunlabelled = "keep"')
    + EVALUATION
    + """
[[releases]]
kind = "site-harmonisation"
columns = ["marker", "age"]
locations = [0.0, 60.0]
scales = [0.5, 20.0]
noise_multiplier = 1.5
[data.label]
column = "dead"
low = 0
high = 1
positive_from = 1
[task]
kind = "tabular-classification"
[model]
name = "logistic-regression"
"""
)
GRU_D = SERIES.replace('name = "gru"', 'name = "gru-d"\nshape = [2]')
PER_RECORD = STUDY.replace("max_records_per_patient", 'unit = "record"\nmax_records_per_patient')
TAGS = (
    PER_RECORD
    + """
[[releases]]
kind = "entity-scores"
bins = 4
noise_multiplier = 4.0
[task]
kind = "text-ner"
[model]
name = "bilstm"
hidden = [8, 8]
outputs = 3
shape = [4, 257]
[data]
kind = "notes"
no_patient_key = true
[data.tokeniser]
kind = "hashed-words"
max_tokens = 8
buckets = 256
[data.label]
column = "tags"
types = ["Disease"]
[data.split]
kind = "column"
column = "split"
"""
)


def tagged_texts(seed: int, *, texts: int = 60) -> list[dict[str, str]]:
    """Texts in which `lung cancer` and `asthma` are diseases."""
    draws = np.random.default_rng(seed)
    rows = []
    for number in range(texts):
        filler = draws.choice(["has", "seen", "for", "with", "known", "today"], 5).tolist()
        tags, place = ["O"] * 5, int(draws.integers(0, 4))
        if number % 2:
            filler[place : place + 2], tags[place : place + 2] = (
                ["lung", "cancer"],
                ["B-Disease", "I-Disease"],
            )
        elif number % 3:
            filler[place], tags[place] = "asthma", "B-Disease"
        part = "test" if number % 4 > 1 else "train"
        rows.append({"text": " ".join(filler), "tags": " ".join(tags), "split": part})
    return rows


RELATIONS = (
    STUDY.replace("max_records_per_patient = 1", "max_records_per_patient = 4")
    + """
[[releases]]
kind = "class-scores"
classes = 3
exclusive = true
bins = 4
noise_multiplier = 1.0
[task]
kind = "text-relations"
[model]
name = "relation-transformer"
hidden = [8, 8]
outputs = 3
shape = [4, 261]
[data]
kind = "notes"
identifiers = ["name"]
[data.tokeniser]
kind = "hashed-words"
max_tokens = 16
buckets = 256
[data.label]
column = "relation"
first = "drug"
second = "problem"
relations = ["treats", "causes"]
[data.split]
kind = "column"
column = "split"
"""
)


def related_pairs(seed: int, *, patients: int = 60) -> list[dict[str, str]]:
    """Two pairs of each patient: one text that says how they are related, and its other half."""
    draws = np.random.default_rng(seed)
    said = {"treats": "helps against", "causes": "is followed by", "none": "has nothing to do with"}
    rows = []
    for number in range(patients):
        name = f"Mx Surname{number}"
        for pair in range(2):
            relation = list(said)[int(draws.integers(0, 3))]
            drug = str(draws.choice(["aspirin", "heparin", "insulin"]))
            problem = str(draws.choice(["chest pain", "fever", "a rash"]))
            begin = f"Seen on 2001-02-0{pair + 1} : {name} says that "
            text = f"{begin}{drug} {said[relation]} {problem} since Monday"
            later = text.index(problem)
            rows.append(
                {
                    "patient_id": f"p{number}",
                    "name": name,
                    "text": text,
                    "drug": f"{len(begin)}-{len(begin) + len(drug)}",
                    "problem": f"{later}-{later + len(problem)}",
                    "relation": relation,
                    "split": "test" if number % 4 > 1 else "train",
                }
            )
    return rows


def relation_sites(folder: Path) -> None:
    """A table of marked pairs for each site."""
    for seed, site in enumerate(SITES):
        write_table(folder / site / "patients.csv", related_pairs(seed))


def table_sites(folder: Path) -> None:
    """A table of rows for each site."""
    for seed, site in enumerate(SITES):
        table(folder / site / "patients.csv", seed=seed)


def unlike_sites(folder: Path) -> None:
    """A table for each site; `east` measures the marker on another scale, a third has no label."""
    for seed, site in enumerate(SITES):
        path = folder / site / "patients.csv"
        table(path, seed=seed)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for number, row in enumerate(rows):
            if site == "east":
                row["marker"] = f"{0.4 * float(row['marker']) + 0.4:.4f}"
            if number % 3 == 0:
                row["dead"] = ""
        write_table(path, rows)


def event_sites(folder: Path) -> None:
    """Two tables of events for each site; `east` has the same as FHIR, `south` as OMOP."""
    for seed, site in enumerate(SITES):
        found = bundles(seed=seed)
        synthea.write_tables(found, folder / site)
        if site == "east":
            synthea.write_bulk(found, folder / "fhir")
        if site == "south":
            synthea.write_omop(found, f"sqlite:///{folder / 'omop.db'}")


def other_sources(folder: Path) -> dict[str, str]:
    """[[data]] of the sites that read the events of `event_sites` from somewhere else."""
    return {
        "east": f'kind = "fhir"\npath = "{folder / "fhir"}"',
        "south": f'kind = "omop"\nurl = "sqlite:///{folder / "omop.db"}"\n'
        'patient_id = "person_source_value"',
    }


def text_sites(folder: Path) -> None:
    """A table of tagged texts for each site."""
    for seed, site in enumerate(SITES):
        write_table(folder / site / "patients.csv", tagged_texts(seed))


def sequence_sites(folder: Path) -> None:
    """A table of sequences for each site."""
    for seed, site in enumerate(SITES):
        sequences(folder / site / "patients.csv", seed=seed)


def molecule_sites(folder: Path) -> None:
    """A table of molecules for each site."""
    for seed, site in enumerate(SITES):
        molecules(folder / site / "patients.csv", seed=seed)


def drug_target_sites(folder: Path) -> None:
    """A table of pairs for each site."""
    for seed, site in enumerate(SITES):
        drug_targets(folder / site / "patients.csv", seed=seed)


def profile_sites(folder: Path) -> None:
    """A table of patients and two matrices for each site."""
    for seed, site in enumerate(SITES):
        profiles(folder / site / "patients.csv", seed=seed)


def whole_survival_sites(folder: Path) -> None:
    """A folder for each modality at each site; the last has no tissue."""
    for seed, site in enumerate(SITES):
        whole_survival_site(folder / site, seed=seed, tissue=site != SITES[-1])


AUTOENCODER = (
    """
[task]
kind = "autoencoder"
[model]
name = "variational-autoencoder"
hidden = [8]
shape = [2]
[[releases]]
kind = "error-scores"
bins = 4
noise_multiplier = 2.0
"""
    + TABLE
)


GENERATION = (
    """
[task]
kind = "generation"
generator_steps = 2
[model]
name = "gan"
hidden = [16]
shape = [2]
"""
    + TABLE
)


def write_study(folder: Path, text: str) -> Path:
    """The study file with its three sites."""
    text += "".join(f'\n[[sites]]\nid = "{site}"\npatients = 30\n' for site in SITES)
    path = folder / "study.toml"
    path.write_text(text)
    return path


STUDIES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "regression": (REGRESSION, table_sites),
    "survival": (SURVIVAL, table_sites),
    "alike": (ALIKE, unlike_sites),
    "series": (SERIES, event_sites),
    "gru-d": (GRU_D, event_sites),
    "tags": (TAGS, text_sites),
    "relations": (RELATIONS, relation_sites),
    "sequences": ("genomic = true\n" + PER_RECORD + SEQUENCES, sequence_sites),
    "molecules": (PER_RECORD + MOLECULES, molecule_sites),
    "drug-targets": ("genomic = true\n" + PER_RECORD + DRUG_TARGETS, drug_target_sites),
    "profiles": ("genomic = true\n" + STUDY + PROFILES, profile_sites),
    "whole-survival": ("genomic = true\n" + STUDY + WHOLE_SURVIVAL, whole_survival_sites),
    "generation": (STUDY + GENERATION, table_sites),
    "autoencoder": (STUDY + AUTOENCODER, table_sites),
}
