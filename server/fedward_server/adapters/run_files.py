"""A run on disk: how it was started, checkpoints, the log of its rounds, the outcome.

One folder per run under the coordinator's state folder. Every file is written aside and moved into
place, so that a reader finds a whole file or none.
"""

import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedward_common.arrays import Tensors, tensor_parts
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.channel.blob_files import keep_as
from fedward_common.errors import ConfigError, LedgerError, StudyFailed
from fedward_common.ids import parse_digest
from fedward_common.log.events import EventLog, read_events
from fedward_common.trust.private_files import remove_drafts, write_atomically
from fedward_common.wire import Octets
from fedward_server.exchange import FINAL_REFUSALS
from fedward_server.fleet import MappedTensors
from fedward_server.progress import ModelFile, Progress, Resumed, require_study, resumed

MODEL = "model.safetensors"
CHECKPOINT = "checkpoint"
OUTCOME = "outcome.json"
LOG = "log.jsonl"
STARTED = "run.json"
CANCELLED = "cancelled"
"""A file that says a person asked for the end of the run."""
CANCELLED_TEXT = "the run was cancelled; rounds that were charged stay charged"
NOT_BEGUN = 0
ROUND_NAME = re.compile(r"round-\d{5,}\.safetensors")
RUN_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemClock:
    """The `Clock` of a real run."""

    def now(self) -> float:
        """Seconds on the monotonic clock."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)


class RunFolder:
    """Implements the run's `RunStore` and `RunEvents` over one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._log = EventLog(folder / LOG)
        remove_drafts(folder)  # whoever made them held this log's lock before

    def resume(self, study: str) -> Resumed:
        """Where the run goes on: its checkpoint and what its log says since.

        Raises:
            LedgerError: the checkpoint is damaged, or the log has lost what it had then.
            ProtocolError: the checkpoint is another study's.
        """
        try:
            data = (self._folder / CHECKPOINT).read_bytes()
            progress = Progress.from_bytes(data, read=self._read_model)
        except FileNotFoundError:
            progress = Progress(study=study)
        require_study(progress, study)
        later: list[tuple[str, dict[str, Any]]] = []
        known = progress.log_seq == 0
        for event in read_events(self._folder / LOG):
            if event.seq == progress.log_seq:
                known = event.sha256 == progress.log_sha256
            elif event.seq > progress.log_seq:
                later.append((event.action, event.fields))
        if not known:
            raise LedgerError(
                f"log {self._folder / LOG}: expected the events that the checkpoint follows, found "
                "others. Restore the newest copy of both"
            )
        told = (progress.evaluated or progress.validated) or any(
            a == "model.checkpoint" for a, _ in later
        )
        if progress.model and not told:
            self._tell_model(progress)  # the process ended between the file and its event
        return resumed(progress, later, final=FINAL_REFUSALS)

    def checkpoint(self, progress: Progress) -> None:
        """Keeps the study after a committed round: durable, old or new, never in between.

        The model itself is kept under its round, too, for reports; its digest goes into the log. A
        large one stands only there, and the checkpoint names that file and its digest.
        """
        seq, sha256 = self._log.head
        kept = replace(progress, log_seq=seq, log_sha256=sha256)
        new = bool(progress.model) and not (progress.evaluated or progress.validated)
        if new:
            self._keep_model(progress.model, round_number=progress.next_round - 1)
        parts = kept.parts(model_file=_file_of(progress.model))
        write_atomically(self._folder / CHECKPOINT, parts, mode=0o600)
        if new:
            self._tell_model(progress)

    def _keep_model(self, model: Tensors, *, round_number: int) -> None:
        """Keeps the model under its round. A large one gives its own file that name, uncopied."""
        path = self._folder / f"round-{round_number:05d}.safetensors"
        if isinstance(model, MappedTensors) and keep_as(model.octets, path):
            model.kept_as = path.name
        else:
            write_atomically(path, tensor_parts(model), mode=0o600)

    def _read_model(self, name: str) -> bytes:
        if not ROUND_NAME.fullmatch(name):
            raise ValueError("name")
        return (self._folder / name).read_bytes()

    def _tell_model(self, progress: Progress) -> None:
        model = tensor_parts(progress.model)
        known = progress.model if isinstance(progress.model, MappedTensors) else None
        self.emit(
            "model.checkpoint",
            round=progress.next_round - 1,
            model_sha256=sha256_hex(model) if known is None else known.sha256,
            bytes=sum(map(len, model)),
        )

    def emit(self, action: str, **fields: Any) -> None:
        """Appends one event to the run's log."""
        self._log.append(action, **fields)

    def finish(
        self, *, model: bytes | Sequence[Octets], counts: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        """Writes the final model and, last, the outcome that says the run is finished.

        The model's bytes may come in pieces, one after the other.

        The log is closed: whoever reads the outcome may add to it (`model.signed`).
        """
        parts = [model] if isinstance(model, bytes) else model
        write_atomically(self._folder / MODEL, parts, mode=0o600)
        self.emit("model.final", model_sha256=sha256_hex(parts), bytes=sum(map(len, parts)))
        self._outcome({"status": "finished", "counts": counts, **facts})

    def fail(self, *, code: str, exit_code: int, message: str) -> None:
        """Writes the outcome of a run that ended without a model: failed, or cancelled."""
        status = "failed"
        if (self._folder / CANCELLED).exists():
            # Flower ends a stopped run under the ServerApp, which then finds errors of all kinds.
            status, code, message = "cancelled", StudyFailed.code, CANCELLED_TEXT
            exit_code = StudyFailed.exit_code
            self.emit("run.cancelled")
        self._outcome({"status": status, "code": code, "exit_code": exit_code, "message": message})

    def interrupted(self, error: Exception) -> None:
        """Says that this process ends and the run does not, unless a person wants its end."""
        if (self._folder / CANCELLED).exists():
            self.fail(code=StudyFailed.code, exit_code=StudyFailed.exit_code, message="")
            return
        with suppress(LedgerError):  # the disk may be what is full
            self.emit("run.interrupted", error=type(error).__name__)

    def _outcome(self, outcome: dict[str, Any]) -> None:
        self._log.close()
        write_atomically(self._folder / OUTCOME, canonical_json(outcome), mode=0o600)


def _file_of(model: Tensors) -> ModelFile | None:
    """The model's own file of a round, where the checkpoint need not hold it a second time."""
    if isinstance(model, MappedTensors) and model.kept_as:
        return ModelFile(name=model.kept_as, sha256=model.sha256)
    return None


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """The outcome of a run, or None while it goes on."""
    try:
        outcome: dict[str, Any] = json.loads((folder / OUTCOME).read_bytes())
    except FileNotFoundError:
        return None
    return outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class StartedRun:
    """What was noted of a run when it was started; `flower_id` is Flower's number for it.

    It is NOT_BEGUN until Flower has said so.
    """

    name: str
    study: str
    study_id: str
    flower_id: int
    started_at: str

    def write(self, state: Path) -> None:
        """Notes it in the run's folder."""
        folder = run_path(state, self.name)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(folder / STARTED, canonical_json(self._facts), mode=0o600)

    @property
    def _facts(self) -> dict[str, Any]:
        # As text: 64 bits do not fit a JSON number.
        return {
            "name": self.name,
            "study": self.study,
            "study_id": self.study_id,
            "flower_id": str(self.flower_id),
            "started_at": self.started_at,
        }


def started_runs(state: Path) -> list[StartedRun]:
    """Every run that was started on this coordinator, oldest first."""
    found = [_started(path) for path in (state / "runs").glob(f"*/{STARTED}")]
    return sorted(found, key=lambda run: (run.started_at, run.name))


def unfinished_runs(state: Path) -> list[StartedRun]:
    """The runs without an outcome, oldest first."""
    return [run for run in started_runs(state) if read_outcome(run_path(state, run.name)) is None]


def _started(path: Path) -> StartedRun:
    try:
        facts = json.loads(path.read_bytes())
        return StartedRun(
            name=str(facts["name"]),
            study=str(facts["study"]),
            study_id=str(facts["study_id"]),
            flower_id=int(facts["flower_id"]),
            started_at=str(facts["started_at"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: expected the facts of a started run, found others") from error


def ask_to_cancel(state: Path, name: str) -> None:
    """Notes that a person asked for the end of the run: its outcome will say so."""
    write_atomically(run_path(state, name) / CANCELLED, b"", mode=0o600)


def run_path(state: Path, name: str) -> Path:
    """Where a run keeps its files.

    Raises:
        ConfigError: not a run's name. Names come out of a run's configuration, which whoever
            reaches SuperLink's Control API writes: one with a slash would lead anywhere.
    """
    if not RUN_NAME.fullmatch(name):
        raise ConfigError(
            "run: expected a name of lower-case letters, digits and hyphens, found another"
        )
    return state / "runs" / name


def study_path(state: Path, digest: str) -> Path:
    """Where the coordinator keeps a signed study. Raises ConfigError when it is no digest."""
    return state / "studies" / f"{parse_digest(digest)}.json"


def read_study(state: Path, digest: str) -> bytes:
    """The bytes of a signed study.

    Raises:
        ConfigError: the coordinator has no such study.
    """
    try:
        return study_path(state, digest).read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(
            f"study {digest[:12]}: expected it among the coordinator's studies, found none. "
            "Submit it with `fedward-server study submit`"
        ) from error
