"""Children live and die with their supervisor, come back, and are named when they cannot."""

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedward_common.errors import StartError
from fedward_common.processes import (
    AWAKE,
    ChildSpec,
    Supervisor,
    changed,
    offline_environment,
    port_open,
    require_free_port,
)
from fedward_common.users import Account


def child(folder: Path, code: str, **changes: object) -> ChildSpec:
    fields = {
        "name": "child",
        "command": (sys.executable, "-c", code),
        "log_file": folder / "child.log",
        **changes,
    }
    return ChildSpec(**fields)  # type: ignore[arg-type]


def wait_for(path: Path) -> str:
    limit = time.monotonic() + 10
    while not path.exists() or not path.read_text():
        if time.monotonic() > limit:
            raise AssertionError(f"{path} was not written")
        time.sleep(0.02)
    return path.read_text()


def gone(pid: int) -> bool:
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_used_port_is_named_with_its_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        with pytest.raises(StartError, match=rf"edge: expected port {port} \(listen\)"):
            require_free_port(port, name="edge", key="listen")
        assert port_open(port)


def test_a_free_port_is_fine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    require_free_port(port, name="edge", key="listen")
    assert not port_open(port)


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="expected to find the program no-such-program"):
        Supervisor().start(child(tmp_path, "", command=("no-such-program",)))


def test_a_child_that_ends_while_starting_is_named_with_its_log(tmp_path: Path) -> None:
    spec = child(tmp_path, "import sys; sys.exit(3)", ready=lambda: False)

    with pytest.raises(StartError, match=r"ended with code 3.*child\.log"):
        Supervisor().start(spec)


def test_a_silent_child_is_not_waited_for_forever(tmp_path: Path) -> None:
    supervisor = Supervisor()
    spec = child(tmp_path, "import time; time.sleep(60)", ready=lambda: False, ready_seconds=0.2)
    try:
        with pytest.raises(StartError, match="found it silent"):
            supervisor.start(spec)
    finally:
        supervisor.stop()


def test_a_child_that_is_killed_is_started_again(tmp_path: Path) -> None:
    marker = tmp_path / "pids"
    code = (
        f"import os, time; open({str(marker)!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
    )
    supervisor = Supervisor(poll_seconds=0.02)
    supervisor.start(child(tmp_path, code))
    first = int(wait_for(marker))
    watcher = threading.Thread(target=supervisor.watch)
    watcher.start()
    try:
        os.kill(first, signal.SIGKILL)
        limit = time.monotonic() + 10
        while len(marker.read_text().split()) < 2 and time.monotonic() < limit:
            time.sleep(0.05)
        pids = marker.read_text().split()
    finally:
        supervisor.ask_to_stop()
        watcher.join()
        supervisor.stop()

    assert len(pids) == 2
    assert all(gone(int(pid)) for pid in pids)


def test_a_child_that_cannot_stay_up_ends_the_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedward_common.processes.EARLY_DEATHS", 2)
    supervisor = Supervisor(poll_seconds=0.02)
    supervisor.start(child(tmp_path, "raise SystemExit(7)"))

    with pytest.raises(StartError, match=r"ended 2 times in a row \(code 7\)"):
        supervisor.watch()


def test_a_child_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedward_common.processes.STOP_SECONDS", 0.3)
    marker = tmp_path / "pid"
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    supervisor = Supervisor()
    supervisor.start(child(tmp_path, code, ready=marker.exists))
    pid = int(wait_for(marker))

    supervisor.stop()

    assert gone(pid)


def test_what_a_child_started_and_left_behind_is_ended_with_it(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    command = ("/bin/sh", "-c", f"sleep 60 & echo $! > {marker}; wait")
    supervisor = Supervisor()
    supervisor.start(child(tmp_path, "", command=command, ready=marker.exists))
    pid = int(wait_for(marker))

    supervisor.stop()

    assert gone(pid)


def test_children_die_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    grandchild = (
        f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    script = (
        "import sys, time; from pathlib import Path\n"
        "from fedward_common.processes import ChildSpec, Supervisor\n"
        f"Supervisor().start(ChildSpec(name='x', command=(sys.executable, '-c', {grandchild!r}), "
        f"log_file=Path({str(tmp_path / 'x.log')!r})))\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    pid = int(wait_for(marker))

    parent.kill()
    parent.wait()

    assert gone(pid)


SOMEBODY = Account(name="#54321", uid=54321, gid=54321, groups=(54320,))
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@as_root
def test_a_child_of_another_user_dies_with_its_supervisor_all_the_same(tmp_path: Path) -> None:
    """The kernel forgets that wish when the user changes: it is made afterwards."""
    script = (
        "import sys, time; from pathlib import Path\n"
        "from fedward_common.processes import ChildSpec, Supervisor\n"
        "from fedward_common.users import Account\n"
        "somebody = Account(name='#54321', uid=54321, gid=54321)\n"
        "supervisor = Supervisor()\n"
        "supervisor.start(ChildSpec(name='x', command=('/bin/sleep', '60'), user=somebody, "
        f"log_file=Path({str(tmp_path / 'x.log')!r})))\n"
        "print(supervisor._running['x'].process.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    if parent.stdout is None:
        raise AssertionError("no output")
    pid = int(parent.stdout.readline())
    uid = Path(f"/proc/{pid}").stat().st_uid

    parent.kill()
    parent.wait()

    assert uid == SOMEBODY.uid
    assert gone(pid)


@as_root
def test_a_child_of_another_user_is_that_user_in_name_and_home(tmp_path: Path) -> None:
    command = ("/bin/sh", "-c", "id -u; id -G; echo $USER $LOGNAME $HOME; pwd")
    spec = child(tmp_path, "", command=command, user=SOMEBODY, home=Path("/somewhere"))
    supervisor = Supervisor()

    supervisor.start(spec)
    said = wait_for_lines(spec.log_file, 4)
    supervisor.stop()

    assert said == ["54321", "54321 54320", "#54321 #54321 /somewhere", "/"]


@as_root
def test_a_log_file_belongs_to_whom_the_logs_are(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        os.chown(folder, SOMEBODY.uid, SOMEBODY.gid)
        supervisor = Supervisor(log_owner=SOMEBODY)

        supervisor.start(child(folder / "logs", "", command=("/bin/true",)))
        supervisor.stop()

        assert (folder / "logs" / "child.log").stat().st_uid == SOMEBODY.uid


def test_a_user_that_cannot_be_taken_on_is_an_error_and_no_child_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    nobody = Account(name="nobody-at-all", uid=2**32 - 1, gid=2**32 - 1)
    spec = child(tmp_path, f"open({str(marker)!r}, 'w')", user=nobody)

    with pytest.raises(StartError, match="expected to become nobody-at-all"):
        Supervisor().start(spec)
    assert not marker.exists()


def wait_for_lines(path: Path, count: int) -> list[str]:
    limit = time.monotonic() + 10
    while len(lines := path.read_text().splitlines()) < count and time.monotonic() < limit:
        time.sleep(0.02)
    return lines


def test_children_get_no_telemetry_and_reach_loopback_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_SOMETHING", "1")

    environment = offline_environment()

    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["NO_PROXY"] == "127.0.0.1,localhost,::1,intranet"
    assert environment["no_proxy"] == environment["NO_PROXY"]
    assert "FLWR_SOMETHING" not in environment


# Heartbeats, logs, and children that only time helps.


def watched(supervisor: Supervisor, until: Callable[[], bool], *, seconds: float = 20) -> None:
    """Lets the supervisor watch until something is so."""
    watcher = threading.Thread(target=supervisor.watch)
    watcher.start()
    limit = time.monotonic() + seconds
    try:
        while not until() and time.monotonic() < limit:
            time.sleep(0.05)
    finally:
        supervisor.ask_to_stop()
        watcher.join()
        supervisor.stop()
    assert until()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LOOK", 0.05), ("SILENT", 1.5), ("FIRST_BEAT", 1.5)):
        monkeypatch.setattr(f"fedward_common.processes.{name}_SECONDS", seconds)


def noting(marker: Path) -> str:
    """A child that notes its pid and then looks at a clock for ever."""
    return (
        f"import os, time; open({str(marker)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "while True: time.sleep(0.1)"
    )


@pytest.mark.usefixtures("impatient")
def test_a_child_that_is_up_and_does_nothing_is_killed_and_started_again(tmp_path: Path) -> None:
    marker = tmp_path / "pids"
    supervisor = Supervisor(poll_seconds=0.02)
    supervisor.start(child(tmp_path, noting(marker), beats=AWAKE))
    first = int(wait_for(marker))

    os.kill(first, signal.SIGSTOP)
    watched(supervisor, lambda: len(marker.read_text().split()) == 2)

    assert all(gone(int(pid)) for pid in marker.read_text().split())


@pytest.mark.usefixtures("impatient")
def test_a_child_that_works_is_left_alone(tmp_path: Path) -> None:
    marker, beaten = tmp_path / "pids", tmp_path / "beat"
    supervisor = Supervisor(poll_seconds=0.02)
    spec = child(tmp_path, noting(marker), beats={**AWAKE, "missing": changed(beaten)})
    supervisor.start(spec)
    started = time.monotonic()

    watched(supervisor, lambda: time.monotonic() - started > 4)

    assert len(marker.read_text().split()) == 1


@pytest.mark.usefixtures("impatient")
def test_a_heartbeat_by_file_that_stands_still_has_the_child_started_again(tmp_path: Path) -> None:
    marker, beaten = tmp_path / "pids", tmp_path / "beat"
    beaten.touch()
    supervisor = Supervisor(poll_seconds=0.02)
    supervisor.start(child(tmp_path, noting(marker), beats={**AWAKE, "file": changed(beaten)}))
    wait_for(marker)

    watched(supervisor, lambda: len(marker.read_text().split()) >= 2)


def test_a_child_that_only_time_helps_is_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedward_common.processes.EARLY_DEATHS", 2)
    monkeypatch.setattr("fedward_common.processes.MAX_PAUSE_SECONDS", 0.05)
    marker = tmp_path / "starts"
    supervisor = Supervisor(poll_seconds=0.02)
    code = f"open({str(marker)!r}, 'a').write('x'); raise SystemExit(305 % 256)"
    supervisor.start(child(tmp_path, code, gives_up=False))

    watched(supervisor, lambda: marker.exists() and len(marker.read_text()) >= 4)


def test_a_childs_log_is_kept_in_bounds_while_it_goes_on_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedward_common.processes.MAX_LOG_BYTES", 10_000)
    supervisor = Supervisor(poll_seconds=0.02)
    code = "import time\nwhile True: print('x' * 999, flush=True); time.sleep(0.005)"
    supervisor.start(child(tmp_path, code))

    watched(supervisor, (tmp_path / "child.log.3").exists)

    logs = sorted(tmp_path.glob("child.log*"))
    assert [path.name for path in logs] == ["child.log", *(f"child.log.{n}" for n in (1, 2, 3))]


def test_on_a_full_disk_a_childs_log_is_given_up_and_no_part_of_a_copy_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedward_common.processes.MAX_LOG_BYTES", 10_000)
    full = OSError(errno.ENOSPC, "No space left on device")
    copied: list[Path] = []

    def copy(source: Path, target: Path, **_options: object) -> None:
        copied.append(source)
        target.write_bytes(b"part")
        raise full

    monkeypatch.setattr("shutil.copyfile", copy)
    supervisor = Supervisor(poll_seconds=0.02)
    code = "import time\nwhile True: print('x' * 999, flush=True); time.sleep(0.005)"
    supervisor.start(child(tmp_path, code))

    watched(supervisor, lambda: len(copied) >= 2)

    assert [path.name for path in tmp_path.glob("child.log*")] == ["child.log"]


def test_a_child_whose_log_cannot_be_opened_is_started_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedward_common.processes.MAX_PAUSE_SECONDS", 0.1)
    marker, logs = tmp_path / "marker", tmp_path / "logs"
    code = f"open({str(marker)!r}, 'a').write('x')"
    spec = replace(child(tmp_path, code), log_file=logs / "child.log", gives_up=False)
    supervisor = Supervisor(poll_seconds=0.02)
    supervisor.start(spec)
    (logs / "child.log").unlink()
    logs.rmdir()
    logs.write_text("in the way")
    tried = [0]

    def again() -> bool:
        tried[0] += 1
        if tried[0] == 30:
            logs.unlink()
        return marker.exists() and len(marker.read_text()) >= 3

    watched(supervisor, again)
