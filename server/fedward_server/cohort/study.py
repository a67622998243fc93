"""The study of a made-up cohort, as text."""

from collections.abc import Mapping
from typing import Final

from fedward_server.cohort.people import PANEL, SIZE
from fedward_server.cohort.records import ADMISSION, CREATININE, CRP, SEPSIS
from fedward_server.cohort.variants import BUILD, FAMILY, in_units

HELD_OUT: Final = 0.25
SALT: Final = "fedward/cohort/v1"
_STUDY: Final = """\
# Who comes down with sepsis after admission? From an image, records and genotypes of made-up
# patients (`fedward-server make-cohort`): nobody in here is or was a person, and nothing that is
# learned here is true.
id = "made-up-cohort"
title = "Images, records and genotypes of made-up patients"
genomic = true
rounds = {rounds}
local_steps = 1
quorum = {sites}
deadline_seconds = 300

[task]
kind = "multimodal"

# One encoder for each modality, in the order of [[data.modalities]].
[model]
name = "multimodal"

[model.fusion]
how = "concatenation"    # or "gated", "attention"
width = 8

[[model.fusion.encoders]]
modality = "image"
name = "cnn"
hidden = [8]
shape = [1, {size}, {size}]

[[model.fusion.encoders]]
modality = "records"
name = "linear"

[[model.fusion.encoders]]
modality = "variants"
name = "linear"

[dp]
kind = "dp-sgd"
{unit}epsilon = 8.0
epsilon_is = "admission"
delta = {delta}
clip_norm = 1.0
sampling_probability = 0.25
max_records_per_patient = {records}
noise = "distributed"

[training]
learning_rate = 4.0
# frozen = ["encoders.image"] leaves an encoder as it starts.

[aggregation]
name = "fedavg"
average_last = {tail}

[[releases]]
kind = "binned-scores"
bins = 8
noise_multiplier = 4.0

{whole}
[data]
kind = "multimodal"
label_from = "records"

[data.split]
kind = "hash"
salt = "{salt}"
held_out = {held_out}

[[data.modalities]]
name = "image"

[data.modalities.data]
kind = "plain-image"
height = {size}
width = {size}

[[data.modalities]]
name = "records"

[data.modalities.data]
kind = "clinical"

[data.modalities.data.cohort.index]
concepts = ["{admission}"]

[data.modalities.data.outcome]
kind = "event"
concepts = ["{sepsis}"]

[data.modalities.data.outcome.window]
to_days = 30.0

[[data.modalities.data.features]]
type = "age"
name = "age"
low = 18.0
high = 100.0

[[data.modalities.data.features]]
type = "sex"

[[data.modalities.data.features]]
type = "measured"
name = "crp"
concepts = ["{crp}"]
unit = "mg/L"
aggregation = "last"
low = 0.0
high = 150.0
missing = "indicator"
fill = 30.0
window = {{ from_days = -2.0 }}

[[data.modalities.data.features]]
type = "measured"
name = "creatinine"
concepts = ["{creatinine}"]
unit = "mg/dL"
aggregation = "last"
low = 0.0
high = 3.0
missing = "indicator"
fill = 1.0
window = {{ from_days = -2.0 }}

[[data.modalities]]
name = "variants"

[data.modalities.data]
kind = "genotypes"
build = "{build}"
{kin}loci = [
{loci}
]
"""
_PATIENT: Final = (
    "# All of a patient's modalities are one privacy unit. Who is held out follows from the "
    "patient's id."
)
_FAMILY: Final = """\
# All modalities of all patients whom a table of genotypes puts in one family are one privacy unit.
# Who is held out follows from the name of the family, or of the patient who has none."""
_KIN_RECORDS: Final = 3
_SITE: Final = """
[[sites]]
id = "{name}"
patients = {patients}
"""


def study_text(patients: Mapping[str, int], *, rounds: int = 60, families: bool = False) -> str:
    """The study.toml of hospitals with these numbers of made-up patients each."""
    units = {name: in_units(n) if families else n for name, n in patients.items()}
    training = {name: _rounded(count) for name, count in units.items()}
    loci = ",\n".join(
        f'  {{ id = "{one.id}", chrom = "{one.chrom}", pos = {one.pos}, ref = "{one.ref}", '
        f'alt = "{one.alt}", frequency = {one.frequency} }}'
        for one in PANEL
    )
    text = _STUDY.format(
        rounds=rounds,
        tail=max(1, rounds // 2),
        sites=len(patients),
        size=SIZE,
        delta=f"{min(0.0099, 0.9 / (10 * sum(training.values()))):.1e}",
        salt=SALT,
        held_out=HELD_OUT,
        admission=ADMISSION,
        sepsis=SEPSIS,
        crp=CRP,
        creatinine=CREATININE,
        build=BUILD,
        loci=loci,
        unit='unit = "family"\n' if families else "",
        records=_KIN_RECORDS if families else 1,
        whole=_FAMILY if families else _PATIENT,
        kin=f'family_key = "{FAMILY}"\n' if families else "",
    )
    return text + "".join(
        _SITE.format(name=name, patients=count) for name, count in training.items()
    )


def _rounded(count: int) -> int:
    """A planning constant: those who are trained on, to tens."""
    return max(1, round(count * (1 - HELD_OUT) / 10) * 10)
