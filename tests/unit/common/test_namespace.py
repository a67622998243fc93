"""A private network has loopback and nothing else, and nobody outside reaches what is in it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_common.errors import StartError
from fedward_common.namespace import (
    IsolationSettings,
    PrivateNetwork,
    open_network,
    port_listening,
    private_network_refusal,
)
from fedward_common.processes import ChildSpec, Supervisor


@pytest.fixture
def network() -> Iterator[PrivateNetwork]:
    if (reason := private_network_refusal()) is not None:
        pytest.skip(reason)
    made = PrivateNetwork.create()
    yield made
    made.close()


def inside(network: PrivateNetwork, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=network.enter,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_there_is_nothing_but_loopback_and_it_works(network: PrivateNetwork) -> None:
    code = (
        "import socket; print([name for _, name in socket.if_nameindex()])\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname(), timeout=5).close()\n"
    )

    done = inside(network, code)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['lo']"


def test_a_listener_of_the_host_is_out_of_reach(network: PrivateNetwork) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=5)"

        done = inside(network, code)

    assert "ConnectionRefusedError" in done.stderr


def test_an_address_beyond_the_host_is_out_of_reach(network: PrivateNetwork) -> None:
    code = "import socket; socket.create_connection(('198.51.100.7', 443), timeout=5)"

    done = inside(network, code)

    assert "Network is unreachable" in done.stderr


def test_whoever_enters_stays_the_same_user(network: PrivateNetwork) -> None:
    done = inside(network, "import os; print(os.getuid(), os.getgid())")

    assert done.stdout.split() == [str(os.getuid()), str(os.getgid())]


def test_a_service_of_the_host_that_asks_the_network_for_others_is_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the resolver: a name to look up is a letter, and its socket is everybody's."""
    if (reason := private_network_refusal()) is not None:
        pytest.skip(reason)
    services = tmp_path / "resolve"
    services.mkdir()
    monkeypatch.setattr("fedward_common.namespace.SERVICES", (str(services),))
    network = PrivateNetwork.create()
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "print('reached')"
    )
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(services / "r.sock"))
        service.listen()
        asked = [sys.executable, "-c", code, str(services / "r.sock")]
        before = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)

        after = subprocess.run(
            asked,
            preexec_fn=network.enter,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    network.close()
    assert before.stdout == "reached\n"
    assert "FileNotFoundError" in after.stderr
    assert (services / "r.sock").exists()


@pytest.mark.usefixtures("_kernel_without_mounts")
def test_where_services_cannot_be_hidden_auto_says_so_and_required_does_not_start() -> None:
    network, _ = open_network(IsolationSettings())
    if network is None:
        raise AssertionError("expected a network")
    network.close()

    assert not network.hides_services
    with pytest.raises(StartError, match="message bus"):
        open_network(IsolationSettings(network="required"))


@pytest.fixture
def _kernel_without_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    if (reason := private_network_refusal()) is not None:
        pytest.skip(reason)

    def refuse() -> None:
        raise PermissionError("no mounts here")

    monkeypatch.setattr("fedward_common.namespace._hide_services", refuse)


def test_two_private_networks_are_two(network: PrivateNetwork) -> None:
    other = PrivateNetwork.create()
    code = "import os; print(os.readlink('/proc/self/ns/net'))"
    try:
        names = {inside(one, code).stdout for one in (network, other)}
    finally:
        other.close()

    assert len(names) == 2
    assert f"{Path('/proc/self/ns/net').readlink()}\n" not in names


def test_a_port_inside_is_seen_by_the_supervisor_and_by_nobody_else(
    network: PrivateNetwork, tmp_path: Path
) -> None:
    port = 9471
    code = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(60)"
    supervisor = Supervisor()
    spec = ChildSpec(
        name="server",
        command=(sys.executable, "-c", code),
        log_file=tmp_path / "server.log",
        network=network,
        ready=lambda: supervisor.listens("server", port),
        ready_seconds=20,
    )
    try:
        supervisor.start(spec)

        assert not port_listening(os.getpid(), port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    finally:
        supervisor.stop()


def test_a_child_in_a_private_network_dies_with_its_supervisor(
    network: PrivateNetwork, tmp_path: Path
) -> None:
    del network
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from fedward_common.namespace import PrivateNetwork\n"
        "from fedward_common.processes import ChildSpec, Supervisor\n"
        "supervisor = Supervisor()\n"
        "supervisor.start(ChildSpec(name='x', command=('/bin/sleep', '60'), "
        "log_file=Path(sys.argv[1]), network=PrivateNetwork.create()))\n"
        "print(supervisor._running['x'].process.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "x.log")], stdout=subprocess.PIPE
    )
    if parent.stdout is None:
        raise AssertionError("no output")
    child = int(parent.stdout.readline())

    parent.kill()
    parent.wait()

    limit = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    assert not Path(f"/proc/{child}").exists()


def test_none_makes_no_network_and_says_why() -> None:
    assert open_network(IsolationSettings(network="none")) == (
        None,
        'network = "none" in [isolation]',
    )


@pytest.fixture
def _kernel_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "another")


@pytest.mark.usefixtures("_kernel_without")
def test_auto_goes_on_without_and_says_why() -> None:
    network, reason = open_network(IsolationSettings())

    assert network is None
    assert "expected Linux" in reason


@pytest.mark.usefixtures("_kernel_without")
def test_required_does_not_start_without() -> None:
    with pytest.raises(StartError, match="private network: expected Linux"):
        open_network(IsolationSettings(network="required"))
