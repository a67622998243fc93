"""Nothing phones home: during a whole study no packet leaves loopback.

The evidence is the kernel's: the study runs in a network namespace whose one way out is a dead link
with a packet counter, so name look-ups, telemetry and update checks of any process would count.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "support" / "no_way_out.sh"
BIN = Path(sys.executable).parent


def run_isolated(count_file: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "-rnm", "bash", str(SCRIPT), str(count_file), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


@pytest.fixture(autouse=True)
def _namespaces(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs unshare and ip (make ci-deps)")
    if run_isolated(tmp_path / "probe", "true").returncode != 0:
        pytest.skip("this machine allows no network namespaces")


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('203.0.113.7', 443), timeout=0.3)",
        "import socket; socket.getaddrinfo('telemetry.example', 443)",
    ],
    ids=["a connection", "a name look-up"],
)
def test_the_counter_sees_an_attempt_to_leave(tmp_path: Path, attempt: str) -> None:
    run_isolated(tmp_path / "count", "timeout", "3", sys.executable, "-c", attempt)

    assert int((tmp_path / "count").read_text()) > 0


def test_the_counter_does_not_count_loopback(tmp_path: Path) -> None:
    attempt = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); "
        "socket.create_connection(s.getsockname()).close()"
    )

    done = run_isolated(tmp_path / "count", sys.executable, "-c", attempt)

    assert done.returncode == 0
    assert int((tmp_path / "count").read_text()) == 0


@pytest.mark.federation
def test_a_whole_study_sends_no_packet_beyond_loopback(tmp_path: Path, short_study: Path) -> None:
    done = run_isolated(
        tmp_path / "count",
        str(BIN / "fedward-server"),
        "sandbox",
        str(short_study),
        "--out",
        str(tmp_path / "out"),
        "--json",
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rounds"]["committed"] >= 1
    assert int((tmp_path / "count").read_text()) == 0
