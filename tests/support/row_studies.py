"""Study files of labelled rows (sequences and the like), and the tables of their made-up sites."""

from pathlib import Path

import numpy as np

from tests.support.studies import write_table

SEQUENCES = """
[[releases]]
kind = "class-scores"
bins = 4
classes = 3
exclusive = true
noise_multiplier = 2.0
[task]
kind = "sequence-classification"
[model]
name = "lstm"
hidden = [8]
steps = 4
outputs = 3
[data]
kind = "sequence"
no_patient_key = true
alphabet = "dna"
length = 12
[data.encoding]
kind = "one-hot"
[data.label]
column = "site"
classes = ["donor", "acceptor", "neither"]
[data.split]
kind = "column"
column = "split"
"""
MOTIFS = {"donor": "GTAAG", "acceptor": "TTCAG", "neither": ""}


def sequences(path: Path, *, seed: int, count: int = 90) -> Path:
    """Rows of twelve letters; donors and acceptors have their motif in the middle."""
    draws = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        site = list(MOTIFS)[number % 3]
        letters = "".join(draws.choice(list("ACGT"), 12))
        motif = MOTIFS[site]
        rows.append(
            {
                "sequence": letters[:4] + motif + letters[4 + len(motif) :],
                "site": site,
                "split": "test" if number // 3 % 2 else "train",
            }
        )
    return write_table(path, rows)


MOLECULES = """
[[releases]]
kind = "class-scores"
bins = 4
classes = 2
exclusive = false
noise_multiplier = 2.0
[task]
kind = "molecule-property"
[model]
name = "mlp"
hidden = [8]
outputs = 2
[data]
kind = "molecule"
no_patient_key = true
[data.encoding]
kind = "morgan"
bits = 64
[data.label]
answers = ["acid", "aromatic"]
[data.split]
kind = "column"
column = "split"
"""


def molecules(path: Path, *, seed: int, count: int = 120) -> Path:
    """Small acids and alcohols, aromatic or not; every fifth answer was not measured."""
    draws = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        acid, aromatic = number % 2, number // 2 % 2
        chain = "C" * int(draws.integers(1, 6))
        ring = "c1ccccc1" if aromatic else "C1CCCCC1"
        rows.append(
            {
                "smiles": f"{ring}{chain}{'C(=O)O' if acid else 'CO'}",
                "acid": "" if number % 5 == 0 else str(acid),
                "aromatic": "" if number % 5 == 1 else str(aromatic),
                "split": "test" if number // 4 % 2 else "train",
            }
        )
    return write_table(path, rows)


PROFILES = """
[task]
kind = "survival"
likelihood = "proportional-hazards"
cuts = [365.0, 730.0, 1460.0]
horizon_days = 730.0
[model]
name = "proportional-hazards"
outputs = 3
[[releases]]
kind = "binned-scores"
bins = 4
noise_multiplier = 4.0
[data]
kind = "profiles"
[[data.layers]]
name = "rna"
scale = "z-score"
genes = ["G0", "G1", "G2", "G3"]
weight = 0.5
[[data.layers]]
name = "cn"
scale = "copy-number"
genes = ["G0", "G1"]
[[data.clinical]]
name = "age"
type = "number"
unit = "years"
low = 20.0
high = 100.0
[data.label]
column = "days"
event_column = "dead"
longest_days = 1460.0
[data.split]
kind = "column"
column = "split"
"""


def profiles(path: Path, *, seed: int, patients: int = 60) -> Path:
    """patients.csv, rna.csv and cn.csv: the first gene shortens the time to the event."""
    draws = np.random.default_rng(seed)
    table, rna, copies = [], [], []
    for number in range(patients):
        patient, values = f"p{number}", draws.normal(size=5)
        days = float(draws.exponential(700 * np.exp(-1.6 * values[1])))
        followed = float(draws.uniform(300, 1460))
        table.append(
            {
                "patient_id": patient,
                "age": f"{draws.uniform(30, 90):.1f}",
                "days": f"{max(1.0, min(days, followed)):.1f}",
                "dead": str(int(days <= followed)),
                "split": "test" if number % 2 else "train",
            }
        )
        rna.append({"id": patient} | {f"G{k - 1}": f"{values[k]:.3f}" for k in (4, 3, 2, 1)})
        copies.append({"id": patient} | {f"G{k}": str(draws.integers(-2, 3)) for k in range(3)})
    write_table(path.with_name("rna.csv"), rna)
    write_table(path.with_name("cn.csv"), copies)
    return write_table(path, table)


DRUG_TARGETS = """
[[releases]]
kind = "value-scores"
bins = 5
noise_multiplier = 2.0
[task]
kind = "drug-target"
[model]
name = "multimodal"
[model.fusion]
how = "concatenation"
width = 6
[[model.fusion.encoders]]
modality = "molecule"
name = "mlp"
hidden = [8]
[[model.fusion.encoders]]
modality = "protein"
name = "cnn1d"
hidden = [8]
shape = [20, 16]
[data]
kind = "drug-target"
no_patient_key = true
[data.molecule]
smiles = "compound"
encoding = { kind = "morgan", bits = 64, descriptors = false }
[data.protein]
sequence = "target"
alphabet = "protein"
length = 16
other_lengths = "fit"
encoding = { kind = "one-hot" }
[data.label]
column = "pkd"
unit = "pKd"
low = 5.0
high = 10.0
[data.split]
kind = "column"
column = "split"
"""
RINGS = {"c1ccccc1": 1.0, "C1CCCCC1": 0.0, "c1ccncc1": 0.5}
TAILS = {"C(=O)O": 1.0, "CO": 0.0, "CN": 0.5}
POCKET = "WKHGD"


def drug_targets(path: Path, *, seed: int, count: int = 120) -> Path:
    """Pairs with pKd = 5 + 1.2 ring + 0.8 tail + 2 pocket + noise of 0.1: a known function of both.

    Ring and tail are those of the molecule; the pocket is the share of a motif's five letters that
    the protein has at its place. Made up: no measured affinity is in the repository.
    """
    draws = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        ring, tail = draws.choice(list(RINGS)), draws.choice(list(TAILS))
        letters = list(draws.choice(list("ACEFILMNPQRSTVY"), int(draws.integers(13, 18))))
        there = draws.random(len(POCKET)) < 0.5
        for place, letter in enumerate(POCKET):
            letters[4 + place] = letter if there[place] else "A"
        pkd = 5.0 + 1.2 * RINGS[ring] + 0.8 * TAILS[tail] + 2.0 * there.mean()
        rows.append(
            {
                "compound": f"{ring}{'C' * int(draws.integers(0, 3))}{tail}",
                "target": "".join(letters),
                "pkd": f"{pkd + draws.normal(0.0, 0.1):.3f}",
                "split": "test" if number % 3 == 2 else "train",
            }
        )
    return write_table(path, rows)
