"""Starting a study on a running coordinator, following it to its outcome, ending it early."""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fedward_common.errors import ConfigError, FedwardError, StartError, StudyFailed
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.trust.certificates import make_loopback_identity
from fedward_common.trust.private_files import write_atomically
from fedward_server.adapters.flower_control import FlowerControl, build_bundle
from fedward_server.adapters.run_files import (
    LOG,
    NOT_BEGUN,
    RunFolder,
    StartedRun,
    ask_to_cancel,
    read_outcome,
    read_study,
    run_path,
    started_runs,
    study_path,
    unfinished_runs,
)
from fedward_server.adapters.start_weights import keep_start_weights
from fedward_server.bundle import bundle_folder
from fedward_server.serve import register_nodes, require_running
from fedward_server.settings import CoordinatorSettings

FOLLOW_SECONDS: Final = 0.1
CANCEL_SECONDS: Final = 90.0
CANCEL_GRACE_SECONDS: Final = 3.0
"""How long a ServerApp that was told to stop may take to write its own outcome; then we try, until
it has let go of the log."""


def start_run(
    settings: CoordinatorSettings, signed_study: bytes, *, start_weights: Path | None = None
) -> tuple[str, int]:
    """The name and Flower id of a new run of a signed study; the study is verified first.

    `start_weights`: the file that the study begins with, where it names one that is not kept yet.

    Raises:
        ProtocolError, SignatureRefused: it is not a signed study.
        ConfigError: another run is in its way, or the weights are not those that it names.
        StartError: the coordinator is not running or refused.
    """
    study = store_study(settings, signed_study)
    keep_start_weights(settings.state, study, start_weights)
    require_running(settings)
    register_nodes(settings)
    bundle = build_bundle(bundle_folder())
    with control_of(settings) as control:
        run = begin_run(
            settings.state,
            study,
            lambda name: control.start_run(bundle, config={"study": study.digest, "run": name}),
        )
    return run.name, run.flower_id


def begin_run(state: Path, study: StudySpec, start: Callable[[str], int]) -> StartedRun:
    """The run that `start` began under the name it was given, and what is noted of it.

    It is noted before it begins: whatever ends this process, a run that asks sites stands in the
    list, and is continued. One that does not begin stands there as failed.

    Raises:
        ConfigError: another run is in its way. StartError: it did not begin.
    """
    with _alone(state):
        require_free(state, study)
        run = StartedRun(
            name=f"{study.id}-{secrets.token_hex(4)}",
            study=study.digest,
            study_id=study.id,
            flower_id=NOT_BEGUN,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        run.write(state)
    try:
        begun = replace(run, flower_id=start(run.name))
    except StartError as error:
        ended = RunFolder(run_path(state, run.name))
        ended.fail(code=error.code, exit_code=error.exit_code, message=str(error))
        raise
    begun.write(state)
    return begun


def require_free(state: Path, study: StudySpec) -> None:
    """Returns when no unfinished run is in the way of one of `study`.

    1. Two runs of one study would take each other's set-ups and streams. 2. While a study streams,
    its sites answer no other message (SuperNode works on one at a time): the rounds of another
    study there would be abandoned one after the other.

    Raises:
        ConfigError: names the run.
    """
    for run in unfinished_runs(state):
        # 1.
        if run.study == study.digest:
            raise ConfigError(
                f"study {study.id}: expected no run of it under way, found {run.name}. Wait for it "
                f"or end it: `fedward-server study cancel {run.name}`"
            )
        # 2.
        other = SignedStudy.parse(read_study(state, run.study)).verify()
        shared = sorted({site.id for site in study.sites} & {site.id for site in other.sites})
        if shared and (study.streams or other.streams):
            raise ConfigError(
                f"study {study.id}: expected sites that no streaming study keeps busy, found "
                f"{shared[0]} also in run {run.name}. Wait for it, or sign both with stream = "
                '"never"'
            )


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Of two starts at the same moment the second sees the first."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(state / "starting.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def store_study(settings: CoordinatorSettings, signed_study: bytes) -> StudySpec:
    """The study, verified and kept under its digest, ready for `runs start`.

    Raises:
        ProtocolError, SignatureRefused: it is not a signed study.
    """
    study = SignedStudy.parse(signed_study).verify()
    path = study_path(settings.state, study.digest)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, signed_study)
    return study


def cancel_run(settings: CoordinatorSettings, name: str) -> None:
    """Ends a run for good; when this returns its outcome says `cancelled`.

    What the sites were charged stays charged, and rounds that were begun stay answered.

    Raises:
        ConfigError: no such run, or it has ended.
        StartError: the coordinator is not running or does not end the run.
    """
    run = find_run(settings, name)
    folder = run_folder(settings, name)
    if (outcome := read_outcome(folder)) is not None:
        raise ConfigError(f"run {name}: expected a run that goes on, found it {outcome['status']}")
    require_running(settings)
    with control_of(settings) as control:
        ask_to_cancel(settings.state, name)
        if run.flower_id != NOT_BEGUN:
            control.stop_run(run.flower_id)
    started = time.monotonic()
    while read_outcome(folder) is None:
        waited = time.monotonic() - started
        if waited > CANCEL_GRACE_SECONDS:
            _end_cancelled(folder, last=waited > CANCEL_SECONDS)
        time.sleep(FOLLOW_SECONDS)


def _end_cancelled(folder: Path, *, last: bool) -> None:
    """Writes the outcome of a cancelled run whose ServerApp was killed before it could."""
    try:
        ended = RunFolder(folder)
    except StartError:
        # The ServerApp still holds the log: it is about to find out.
        if last:
            raise
        return
    ended.fail(code=StudyFailed.code, exit_code=StudyFailed.exit_code, message="")


def find_run(settings: CoordinatorSettings, name: str) -> StartedRun:
    """The run of that name. Raises ConfigError when none was started here."""
    run_path(settings.state, name)
    found = next((run for run in started_runs(settings.state) if run.name == name), None)
    if found is None:
        raise ConfigError(
            f"run {name}: expected a run of this coordinator, found none. "
            "`fedward-server study status` lists them"
        )
    return found


def flower_status(settings: CoordinatorSettings, run: StartedRun) -> str | None:
    """Flower's word for where a run stands; None while the coordinator does not answer."""
    try:
        require_running(settings)
        with control_of(settings) as control:
            return control.run_status(run.flower_id)
    except StartError:
        return None


def online_nodes(settings: CoordinatorSettings) -> int:
    """How many sites are connected now."""
    with control_of(settings) as control:
        return control.online_nodes()


def control_of(settings: CoordinatorSettings) -> FlowerControl:
    """A connection to SuperLink's Control API."""
    loopback = make_loopback_identity(settings.state / "loopback")
    return FlowerControl(
        socket=settings.superlink_socket,
        port=settings.superlink_port,
        ca_certificate=loopback.ca,
    )


def run_folder(settings: CoordinatorSettings, name: str) -> Path:
    """Where a run keeps its files."""
    return run_path(settings.state, name)


def follow(
    settings: CoordinatorSettings,
    name: str,
    *,
    alive: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """The events of a run as they are written, until its outcome is there.

    `alive` is called between looks; it may raise to give up. A ServerApp that dies is no end: the
    coordinator starts it again (`continuation`), and the events go on.
    """
    folder, position = run_folder(settings, name), 0
    while True:
        outcome = read_outcome(folder)  # read before the log, so that no last event is missed
        lines, position = _new_lines(folder / LOG, position)
        yield from (json.loads(line) for line in lines)
        if outcome is not None:
            return
        alive()
        time.sleep(FOLLOW_SECONDS)


def _new_lines(path: Path, position: int) -> tuple[list[bytes], int]:
    """The whole lines after `position` and where they end."""
    try:
        with path.open("rb") as log:
            log.seek(position)
            text = log.read()
    except FileNotFoundError:
        return [], position
    whole = text[: text.rfind(b"\n") + 1]
    return whole.splitlines(), position + len(whole)


def require_finished(settings: CoordinatorSettings, name: str) -> dict[str, Any]:
    """The outcome of a finished run.

    Raises:
        FedwardError: the run failed; with the class and text of what failed it.
    """
    outcome = read_outcome(run_folder(settings, name))
    if outcome is None:
        raise StartError(f"run {name}: expected an outcome, found none yet")
    if outcome["status"] != "finished":
        kinds = {kind.code: kind for kind in FedwardError.__subclasses__()}
        raise kinds.get(outcome["code"], StudyFailed)(outcome["message"])
    return outcome
