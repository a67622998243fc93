"""Starting a study on a running coordinator and following it to its outcome."""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from fedward_common.errors import FedwardError, StartError, StudyFailed
from fedward_common.study.signed import SignedStudy
from fedward_common.trust.certificates import make_loopback_identity
from fedward_common.trust.private_files import write_atomically
from fedward_server.adapters.flower_control import FlowerControl, build_bundle
from fedward_server.adapters.run_files import LOG, RunFolder, read_outcome, run_path, study_path
from fedward_server.bundle import bundle_folder
from fedward_server.serve import require_running
from fedward_server.settings import CoordinatorSettings

FOLLOW_SECONDS: Final = 0.1
STATUS_SECONDS: Final = 2.0


def start_run(settings: CoordinatorSettings, signed_study: bytes) -> tuple[str, int]:
    """The name and Flower id of a new run of a signed study; the study is verified first.

    Raises:
        ProtocolError, SignatureRefused: it is not a signed study.
        StartError: the coordinator is not running or refused.
    """
    study = SignedStudy.parse(signed_study).verify()
    require_running(settings)
    path = study_path(settings.state, study.digest)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, signed_study)
    name = f"{study.id}-{secrets.token_hex(4)}"
    with _control(settings) as control:
        bundle = build_bundle(bundle_folder())
        flower_id = control.start_run(bundle, config={"study": study.digest, "run": name})
    return name, flower_id


def online_nodes(settings: CoordinatorSettings) -> int:
    """How many sites are connected now."""
    with _control(settings) as control:
        return control.online_nodes()


def _control(settings: CoordinatorSettings) -> FlowerControl:
    loopback = make_loopback_identity(settings.state / "loopback")
    return FlowerControl(port=settings.superlink_port, ca_certificate=loopback.ca)


def run_folder(settings: CoordinatorSettings, name: str) -> Path:
    """Where a run keeps its files."""
    return run_path(settings.state, name)


def follow(
    settings: CoordinatorSettings,
    name: str,
    flower_id: int,
    *,
    alive: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """The events of a run as they are written, until its outcome is there.

    `alive` is called between looks; it may raise to give up. A ServerApp that ended without an
    outcome (killed, out of memory) ends the iteration with a StartError.
    """
    folder, position, checked = run_folder(settings, name), 0, time.monotonic()
    while True:
        outcome = read_outcome(folder)  # read before the log, so that no last event is missed
        lines, position = _new_lines(folder / LOG, position)
        yield from (json.loads(line) for line in lines)
        if outcome is not None:
            return
        alive()
        if time.monotonic() - checked > STATUS_SECONDS:
            checked = time.monotonic()
            with _control(settings) as control:
                status = control.run_status(flower_id)
            if status.startswith("finished") and read_outcome(folder) is None:
                message = (
                    f"run {name}: expected an outcome, found that its ServerApp ended with "
                    f"{status}. See {settings.state / 'logs'}"
                )
                RunFolder(folder).fail(
                    code=StartError.code, exit_code=StartError.exit_code, message=message
                )
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
