"""Data sets that other packages ship, read out of an installed package or a wheel, never imported.

scikit-survival is GPL and no part of Fedward (rules 28): its data file is read, nothing of it runs.
`pip download --no-deps --dest FOLDER scikit-survival scanpy` fetches the wheels without installing
anything; `--wheels FOLDER` of a benchmark reads them there.
"""

import zipfile
from importlib.util import find_spec
from pathlib import Path


def packaged(package: str, member: str, *, project: str, wheels: Path | None) -> bytes | None:
    """The file `member` of `package`: out of a wheel in `wheels`, else installed; None: neither."""
    pattern = f"{project.replace('-', '_')}-*.whl"
    for path in sorted(wheels.glob(pattern) if wheels is not None else ()):
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(f"{package}/{member}")
    found = find_spec(package)
    for folder in (found.submodule_search_locations if found else None) or ():
        path = Path(folder) / member
        if path.is_file():
            return path.read_bytes()
    return None


def skipped(project: str, *, licence: str) -> str:
    """What to say where the data set is not there."""
    return (
        f"skipped: the data set is in the package {project} ({licence}; no part of Fedward), which "
        f"was not found. Fetch it with `pip download --no-deps --dest FOLDER {project}` and name "
        "the folder: --wheels FOLDER (make: WHEELS=FOLDER)"
    )
