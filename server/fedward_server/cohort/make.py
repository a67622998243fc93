"""`fedward-server make-cohort`: made-up hospitals in a folder, and a study that they can run."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fedward_common.errors import ConfigError
from fedward_server.cohort.images import DICOM, write_images
from fedward_server.cohort.people import Patient, draw_patients, site_names
from fedward_server.cohort.records import FHIR, write_records
from fedward_server.cohort.study import study_text
from fedward_server.cohort.variants import BUILD, FAMILY, write_variants
from fedward_server.sandbox.folders import SETTINGS
from fedward_server.sandbox.genotypes import GENOTYPES, PEOPLE
from fedward_server.sandbox.run import SITES, STUDY

FEWEST_SITES: Final = 3
"""Fewer hospitals have no secret sum."""
README: Final = """\
Made up by `fedward-server make-cohort`. Nobody in here is or was a person: every patient, image,
laboratory value and genotype was drawn by a random number generator from a seed. Nothing that is
learned from it is true of anybody.

study.toml        the study of these hospitals
sites/NAME/       one hospital: settings.toml as it would stand in its site.toml; DICOM in
                  image/dicom, FHIR R4 in records/fhir, a VCF in variants. Beside them the same
                  patients in plain tables and arrays, for the sandbox's own exact figures.
"""
_SETTINGS: Final = """\
# As it would stand in this hospital's site.toml. Made-up patients.
{absent}
{image}[[data]]
modality = "records"
kind = "fhir"
path = "records/{fhir}"

[[data]]
modality = "variants"
kind = "genotypes"
path = "variants/{genotypes}"
people = "variants/{people}"
build = "{build}"
patient_key = "patient_id"
{kin}"""
_IMAGE: Final = """\
[[data]]
modality = "image"
kind = "images"
path = "image/{dicom}"
patient_key = "patient_id"

"""


def make_cohort(
    out: Path, *, sites: int, patients: int, seed: int, families: bool = False
) -> dict[str, Any]:
    """What was written under `out`: hospitals of `patients` made-up people each, and their study.

    The last hospital has no images. Equal arguments give equal bytes. With `families` the table of
    samples says who is kin, and the study's privacy unit is a family.

    Raises:
        ConfigError: `out` has something in it or cannot be written (nothing is left then), or
            numbers that no cohort has.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: expected a new or empty folder, found something in it")
    if sites < FEWEST_SITES or seed < 0:
        raise ConfigError(
            f"make-cohort: expected at least {FEWEST_SITES} sites and a seed of at least 0, found "
            f"{sites} and {seed}"
        )
    try:
        names = site_names(sites)
        drawn = {
            name: draw_patients(
                seed, site=number, name=name, count=patients, images=name != names[-1]
            )
            for number, name in enumerate(names)
        }
    except ValueError as error:
        raise ConfigError(f"make-cohort: {error}") from error
    try:
        _write(out, drawn, patients=patients, families=families)
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)
        raise ConfigError(
            f"{out}: expected a folder that can be made and written, found otherwise "
            f"({error.strerror}); name another, or free some space"
        ) from error
    return {
        "folder": str(out),
        "study": str(out / STUDY),
        "sites": list(names),
        "patients_each": patients,
        "without_images": names[-1],
        "unit": "family" if families else "patient",
        "made_up": True,
    }


def _write(
    out: Path, drawn: Mapping[str, Sequence[Patient]], *, patients: int, families: bool
) -> None:
    last = list(drawn)[-1]
    for name, people in drawn.items():
        folder = out / SITES / name
        folder.mkdir(parents=True)
        if name != last:
            write_images(folder / "image", people)
        write_records(folder / "records", people)
        write_variants(folder / "variants", people, families=families)
        settings = _settings(images=name != last, families=families)
        (folder / SETTINGS).write_text(settings, encoding="utf-8")
    text = study_text(dict.fromkeys(drawn, patients), families=families)
    (out / STUDY).write_text(text, encoding="utf-8")
    (out / "README").write_text(README, encoding="utf-8")


def _settings(*, images: bool, families: bool) -> str:
    return _SETTINGS.format(
        absent="" if images else 'absent_modalities = ["image"]\n',
        image=_IMAGE.format(dicom=DICOM) if images else "",
        fhir=FHIR,
        genotypes=GENOTYPES,
        people=PEOPLE,
        build=BUILD,
        kin=f'family_key = "{FAMILY}"\n' if families else "",
    )
