"""Objects of a PACS as files below a folder, one study after another, never twice."""

import hashlib
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom import dcmwrite
from pydicom.dataset import Dataset

from fedward_client.data.dicom.quiet import without_words
from fedward_common.trust.private_files import write_private


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A study that a PACS offers; the uid stays at the site."""

    study_uid: str
    modalities: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulled:
    """What a pull brought. Exact counts: for the site's own eyes."""

    studies: int
    objects: int
    failed: int


class Folder:
    """Keeps objects in `root`, 0600, named by a digest of their UID: no identifier is a name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def keep(self, dataset: Dataset) -> Path:
        """The file of an object; one that is there already is left as it is."""
        name = hashlib.sha256(str(dataset.SOPInstanceUID).encode()).hexdigest()[:32] + ".dcm"
        path = self._root / name
        if not path.exists():
            buffer = BytesIO()
            with without_words():
                dcmwrite(buffer, dataset, enforce_file_format=True)
            write_private(path, buffer.getvalue())
        return path


def private_umask() -> None:
    """New files of this process are the site's own."""
    os.umask(0o077)
