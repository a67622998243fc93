"""The sandbox parent's own copy of a site's images."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from fedward_common.errors import DataError
from fedward_common.ids import SiteId
from fedward_common.processes import offline_environment
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.image_encoding import ImageRow, encode_images, npz_rows
from fedward_common.study.imaging import Pictures
from fedward_server.sandbox.datasets_images import IMAGES, IMAGES_TABLE

PACK_SECONDS: Final = 3600.0


def read_images(
    schema: Pictures, site: SiteId, path: Path
) -> tuple[PatientRecords, PatientRecords]:
    """The training and the held-out records of a .npz set, or of images.csv with its files.

    Single files are decoded by the site's own command: the coordinator's programs read no DICOM.

    Raises:
        DataError: an image or a row that is not as the study says; names the site.
    """
    try:
        single = path.name == IMAGES_TABLE
        rows = _unpacked(schema, path.parent) if single else npz_rows(path, schema)
        train, test = (
            encode_images(schema, rows, part=part, strict=True)[0] for part in ("train", "test")
        )
    except DataError as error:
        raise DataError(f"{site}: {error}") from error
    return train, test


def _unpacked(schema: Pictures, folder: Path) -> list[ImageRow]:
    with tempfile.TemporaryDirectory() as scratch:
        study, target = Path(scratch) / "study.json", Path(scratch) / IMAGES
        study.write_text(json.dumps({"data": schema.model_dump(mode="json")}), encoding="utf-8")
        program = Path(sys.executable).parent / "fedward-client"
        command = [str(program), "images", "pack", str(folder), str(target), "--study", str(study)]
        try:
            done = subprocess.run(
                command,
                env=offline_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PACK_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DataError(
                f"images: expected fedward-client images pack to run, found {type(error).__name__}"
            ) from error
        if done.returncode != 0:
            raise DataError(done.stderr.strip().removeprefix("fedward-client: "))
        return npz_rows(target, schema)
