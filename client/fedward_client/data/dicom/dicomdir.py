"""The files that a DICOMDIR names: media that a scanner or another hospital burned."""

from collections.abc import Iterator
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from fedward_client.data.dicom.quiet import without_words
from fedward_client.data.dicom.reasons import DICOMDIR_CLASS
from fedward_common.errors import DataError


def named_files(dicomdir: Path) -> Iterator[Path]:
    """Every file that the records of `dicomdir` name, whether it is there or not; none outside.

    Raises:
        DataError: no DICOMDIR, or a record that points out of its own folder.
    """
    try:
        with without_words():
            directory = dcmread(dicomdir)
            records = list(directory.get("DirectoryRecordSequence") or [])
    except (OSError, InvalidDicomError, EOFError, ValueError, AttributeError) as error:
        raise DataError("DICOMDIR: expected a readable DICOMDIR, found none") from error
    if directory.file_meta.get("MediaStorageSOPClassUID") != DICOMDIR_CLASS:
        raise DataError("DICOMDIR: expected a DICOMDIR, found another object")
    for record in records:
        name = record.get("ReferencedFileID")
        if not name:
            continue
        parts = [name] if isinstance(name, str) else [str(part) for part in name]
        if any(not part or part in (".", "..") or "/" in part or "\0" in part for part in parts):
            raise DataError("DICOMDIR: expected files below its own folder, found another place")
        yield dicomdir.parent.joinpath(*parts)
