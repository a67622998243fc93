"""What this site keeps between the rounds of a study: one private file a study.

Written after the round's answer is on disk, never before: a round that has to be computed again
starts from what it started from the first time, so that nothing of the first computation, which was
charged once, is in what the second one sends.
"""

from dataclasses import dataclass
from pathlib import Path

from fedward_client.ports import Shapes
from fedward_common.arrays import tensors_from_bytes, tensors_to_bytes
from fedward_common.errors import LedgerError, ProtocolError
from fedward_common.ids import Digest
from fedward_common.study.harmonisation import harmonisation_of
from fedward_common.study.kept import keeps_state, state_shapes
from fedward_common.study.spec import StudySpec
from fedward_common.trust.private_files import write_private


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """The states of all studies under `folder`, readable by this user alone."""

    folder: Path

    def find(self, study: StudySpec) -> bytes:
        """What the site kept; empty before its first answer and where the study keeps nothing.

        Raises:
            LedgerError: it is there and cannot be read.
        """
        if not keeps_state(study):
            return b""
        try:
            return self._path(study.digest).read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise LedgerError(
                f"{self.folder}: expected the state of a study, found {error.strerror}"
            ) from error

    def keep(self, study: StudySpec, state: bytes) -> None:
        """Keeps a checked state instead of the one before.

        Raises:
            LedgerError: it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(self._path(study.digest), state)
        except OSError as error:
            raise LedgerError(
                f"{self.folder}: expected to store the state of a study, found {error.strerror}"
            ) from error

    def _path(self, digest: Digest) -> Path:
        return self.folder / f"{digest}.state"


def check_constants(study: StudySpec, state: bytes, *, before: bytes) -> None:
    """Returns unless a site's location and scale, drawn once, are others than before.

    Raises:
        ProtocolError: they are.
    """
    if before and harmonisation_of(study) is not None and state != before:
        raise ProtocolError(
            "state: expected the site's location and scale as they were drawn, found others"
        )


def check_state(study: StudySpec, state: bytes, *, shapes: Shapes) -> None:
    """Returns when `state` is what the study's sites keep after a round, in its one byte form.

    Raises:
        ProtocolError: it is something else, or the study keeps nothing and this is not empty.
    """
    if not keeps_state(study):
        if state:
            raise ProtocolError("state: expected none in this study, found some")
        return
    expected = state_shapes(study, shapes(study))
    if tensors_to_bytes(tensors_from_bytes(state, shapes=expected)) != state:
        raise ProtocolError("state: expected the plain bytes of its tensors, found others")
