"""What lies in a site's folder of a sandbox: one file or two, or a folder for each modality.

A study of several modalities has, below a site's folder, a folder named as each modality that the
site has, with the files that a study of it alone would have. `settings.toml` beside them is where
the site itself reads the same patients, as it would stand in site.toml.
"""

import tomllib
from pathlib import Path
from typing import Any, Final

from fedward_common.errors import ConfigError
from fedward_server.sandbox.clinical import EVENTS_TABLE
from fedward_server.sandbox.datasets import TABLE
from fedward_server.sandbox.datasets_images import IMAGES, IMAGES_TABLE
from fedward_server.sandbox.genotypes import GENOTYPES

SETTINGS: Final = "settings.toml"
_PLACES: Final = ("path", "people", "patients", "events", "fasta", "vocabulary")
"""Keys of a [[data]] whose values are paths, here relative to the site's folder."""


def data_file(folder: Path) -> Path:
    """The images or the table beside them, the clinical events, the genotypes or the table in a
    folder; the folder itself where it holds a folder for each modality.
    """
    names = (IMAGES, IMAGES_TABLE, EVENTS_TABLE, GENOTYPES)
    found = next((name for name in names if (folder / name).is_file()), TABLE)
    if not (folder / found).is_file() and modality_folders(folder):
        return folder
    return folder / found


def has_data(folder: Path) -> bool:
    """Whether a folder has something that a sandbox can read."""
    return data_file(folder).exists()


def modality_folders(folder: Path) -> dict[str, Path]:
    """The folders of a site's modalities by their names."""
    below = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return {path.name: path for path in below if data_file(path).is_file()}


def own_settings(folder: Path) -> dict[str, Any] | None:
    """The settings in a site's `settings.toml`, the paths of its [[data]] absolute; None without.

    Raises:
        ConfigError: the file is no TOML, or has another key than `data` and `absent_modalities`.
    """
    path = folder / SETTINGS
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: expected [[data]] tables in TOML, found none") from error
    if not found.keys() <= {"data", "absent_modalities"} or not isinstance(found.get("data"), list):
        raise ConfigError(f"{path}: expected absent_modalities and [[data]] alone, found others")
    return {
        **found,
        "data": [
            {key: _placed(folder, key, value) for key, value in entry.items()}
            for entry in found["data"]
        ],
    }


def _placed(folder: Path, key: str, value: Any) -> Any:
    return str((folder / value).absolute()) if key in _PLACES else value
