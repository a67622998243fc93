"""The files with which studies begin, kept on the coordinator under their digests.

They go to the sites inside the first round's model, as any other round's; no site needs the file.
"""

from pathlib import Path

from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError
from fedward_common.models.plugins import is_built_in
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec
from fedward_common.trust.private_files import write_atomically

FOLDER = "weights"


def keep_start_weights(state: Path, study: StudySpec, file: Path | None) -> None:
    """Returns when the file that the study names is kept, from `file` or from before.

    Raises:
        ConfigError: it is not, `file` is another one, or the study names none.
    """
    start = study.model.start
    if start is None:
        if file is not None:
            raise ConfigError(
                f"--start-weights: expected a study with [model.start], found none in {study.id}"
            )
        return
    content = read_start_weights(state, study) if file is None else _read(file)
    check_start_weights(study, content)
    if content is not None and file is not None:
        path = _path(state, start.sha256)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, content, mode=0o600)


def check_start_weights(study: StudySpec, content: bytes | None) -> None:
    """Returns when `content` is what the study names. Raises ConfigError.

    The tensors of a plugin's model are known only where it is installed and registered: of it the
    digest is checked here, and the rest when the run begins.
    """
    # torch costs seconds, and most studies begin with a seed.
    from fedward_common.models.start import start_tensors  # noqa: PLC0415

    if is_built_in(study.model.name):
        start_tensors(study.model, input_size(study.data), file=content)
    elif study.model.start is not None and (
        content is None or sha256_hex(content) != study.model.start.sha256
    ):
        raise ConfigError("model.start: expected the file that the study names, found another")


def read_start_weights(state: Path, study: StudySpec) -> bytes | None:
    """The kept file of the study, as it is on disk; None where there is none."""
    start = study.model.start
    path = None if start is None else _path(state, start.sha256)
    return path.read_bytes() if path is not None and path.is_file() else None


def _path(state: Path, sha256: str) -> Path:
    return state / FOLDER / f"{sha256}.safetensors"


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"--start-weights {file}: expected a safetensors file, found {error.strerror}"
        ) from error
