"""A sandbox of genotypes: study files, and made-up people in a folder for each of four sites."""

from pathlib import Path

import numpy as np

from fedward_server.sandbox.run import Inputs
from tests.support.genotype_studies import (
    HEADER,
    LOCI,
    people,
    simple_lines,
    write_people,
    write_vcf,
)

NAMES = ("north", "east", "south", "west")
CODES = ("0/0", "0|1", "1/1", "./.")
DATA = """
[data]
kind = "genotypes"
build = "GRCh37"
min_call_rate = 0.5
family_key = "family"
loci = [
  { id = "rs1", chrom = "1", pos = 1000, ref = "A", alt = "G", frequency = 0.3 },
  { id = "rs2", chrom = "1", pos = 2000, ref = "C", alt = "T", frequency = 0.5 },
  { id = "rs3", chrom = "2", pos = 1500, ref = "G", alt = "A", frequency = 0.1 },
  { id = "rs4", chrom = "20", pos = 9000, ref = "AT", alt = "A", frequency = 0.2 },
]
"""
LEARNING = """
id = "learn"
title = "A class from genotypes"
genomic = true
jurisdictions = ["CH", "CN"]
rounds = 2
local_steps = 1
quorum = 3
deadline_seconds = 60
[task]
kind = "genotype-classification"
[model]
name = "logistic-regression"
[dp]
kind = "dp-sgd"
unit = "family"
noise_multiplier = 3.0
delta = 1e-4
clip_norm = 1.0
sampling_probability = 0.5
max_records_per_patient = 2
[training]
learning_rate = 0.5
[aggregation]
name = "fedavg"
[[releases]]
kind = "binned-scores"
bins = 4
noise_multiplier = 3.0
"""
COUNTING = """
id = "count"
title = "Frequencies and scores"
genomic = true
quorum = 3
deadline_seconds = 60
[task]
kind = "federated-statistics"
[dp]
kind = "releases-only"
unit = "family"
epsilon = 8.0
delta = 1e-4
[[releases]]
kind = "allele-frequencies"
[[releases]]
kind = "variant-scores"
model = "logistic"
null = [-0.1]
[[releases]]
kind = "genotype-covariance"
norm = 4.0
components = 2
"""
LABEL = '[data.label]\ncolumn = "case"\nlow = 0\nhigh = 1\npositive_from = 1\n'
SPLIT = '[data.split]\nkind = "hash"\nsalt = "x"\nheld_out = 0.3\n'
SITES = "".join(f'[[sites]]\nid = "{name}"\npatients = 40\n' for name in NAMES)


def inputs(folder: Path, text: str) -> Inputs:
    """A study file and its four sites under `folder`: made-up people, ten of them kin."""
    for place, name in enumerate(NAMES):
        draw = np.random.default_rng(place)
        cells = [[CODES[n] for n in draw.choice(4, 40, p=(0.4, 0.3, 0.2, 0.1))] for _ in LOCI]
        rows = people(40, family=[f"f{n // 2}" if n < 10 else "" for n in range(40)])
        write_vcf(
            folder / name / "genotypes.vcf.gz",
            simple_lines(cells),
            samples=[row["sample"] for row in rows],
            header=HEADER,
        )
        write_people(folder / name / "patients.csv", rows)
    study = folder / "study.toml"
    study.write_text(text)
    folders = [f"{name}={folder / name}" for name in NAMES]
    return Inputs.parse(study=study, sites=folders, data=None)


LEARN = LEARNING + SITES + DATA + LABEL + SPLIT
"""A class from genotypes, per family."""
COUNT = COUNTING + SITES + DATA + LABEL
"""Three releases, per family."""
