"""A bridge carries bytes both ways between a 0600 Unix socket and a port, and nothing else."""

import secrets
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from fedward_common.bridge import (
    MAX_CONNECTIONS,
    Address,
    bridge_command,
    parse_address,
)
from fedward_common.errors import StartError
from fedward_common.processes import port_open, socket_open
from fedward_common.unix_sockets import listen_unix

Start = Callable[[Address, Address], subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def run(listen: Address, to: Address) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(bridge_command(sys.executable, listen=listen, to=to))
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        yield run


def wait(ready: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not ready():
        if time.monotonic() > limit:
            raise AssertionError("not ready in time")
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def echo(listener: socket.socket) -> None:
    """Answers each connection with what it sent, once it has ended its sending."""

    def answer(connection: socket.socket) -> None:
        with connection:
            received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            connection.sendall(received)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def asked(connection: socket.socket, data: bytes) -> bytes:
    connection.settimeout(30)
    with connection:
        sender = threading.Thread(
            target=lambda: (connection.sendall(data), connection.shutdown(socket.SHUT_WR))
        )
        sender.start()
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        sender.join()
    return received


def unix(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))
    return connection


def test_a_port_leads_to_a_unix_socket(tmp_path: Path, start: Start) -> None:
    port, path, data = free_port(), tmp_path / "run" / "s.sock", secrets.token_bytes(5 << 20)
    with closing(listen_unix(path)) as listener:
        echo(listener)
        start(port, path)
        wait(lambda: port_open(port))

        answers = [asked(socket.create_connection(("127.0.0.1", port)), data) for _ in range(2)]

    assert answers == [data] * 2


def test_a_unix_socket_leads_to_a_port(tmp_path: Path, start: Start) -> None:
    path, data = tmp_path / "run" / "s.sock", secrets.token_bytes(5 << 20)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        echo(listener)
        start(path, listener.getsockname()[1])
        wait(path.exists)

        answer = asked(unix(path), data)

    assert answer == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_socket_is_there_only_once_the_port_behind_it_answers(
    tmp_path: Path, start: Start
) -> None:
    path, port = tmp_path / "run" / "s.sock", free_port()
    process = start(path, port)
    time.sleep(0.5)
    early = path.exists()

    with socket.create_server(("127.0.0.1", port)):
        wait(lambda: socket_open(path))

    assert not early
    assert process.poll() is None


def test_a_connection_is_closed_when_nothing_answers_behind(tmp_path: Path, start: Start) -> None:
    port, path = free_port(), tmp_path / "run" / "s.sock"
    start(port, path)
    wait(lambda: port_open(port))

    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            received = connection.recv(1)
        except ConnectionResetError:
            received = b""

    assert received == b""


def test_both_ends_end_when_one_does(tmp_path: Path, start: Start) -> None:
    port, path = free_port(), tmp_path / "run" / "s.sock"
    with closing(listen_unix(path)) as listener:
        start(port, path)
        wait(lambda: port_open(port))
        listener.accept()[0].close()  # the look of `port_open`
        near = socket.create_connection(("127.0.0.1", port), timeout=10)
        far, _ = listener.accept()
        far.settimeout(10)

        near.close()

        assert far.recv(1) == b""
        far.close()


def test_connections_that_have_ended_take_no_place(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "run" / "s.sock"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        echo(listener)
        process = start(path, listener.getsockname()[1])
        wait(path.exists)

        answers = [asked(unix(path), b"x") for _ in range(MAX_CONNECTIONS + 20)]
        open_files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))

    assert answers == [b"x"] * len(answers)
    assert open_files < 30


def test_more_connections_than_it_carries_are_closed(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "run" / "s.sock"
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener, ExitStack() as stack:
        echo(listener)
        start(path, listener.getsockname()[1])
        wait(path.exists)
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(unix(path))
        time.sleep(1)

        one_more = stack.enter_context(unix(path))
        one_more.settimeout(10)
        try:
            received = one_more.recv(1)
        except ConnectionResetError:
            received = b""

    assert received == b""


def test_it_ends_with_sigterm_and_leaves_no_socket(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "run" / "s.sock"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = start(path, listener.getsockname()[1])
        wait(path.exists)

        process.terminate()
        process.wait(10)

    assert process.returncode == 0
    assert not path.exists()


def test_a_second_listener_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s.sock"
    with (
        closing(listen_unix(path)),
        pytest.raises(StartError, match="expected nobody to listen there"),
    ):
        listen_unix(path)


def test_a_socket_that_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s.sock"
    listen_unix(path).close()

    with closing(listen_unix(path)):
        assert socket_open(path)


def test_a_folder_that_others_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)

    with pytest.raises(StartError, match="only this process's user may write"):
        listen_unix(folder / "s.sock")


def test_a_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="at most 107 bytes"):
        listen_unix(tmp_path / ("x" * 120))


@pytest.mark.parametrize("text", ["0.0.0.0:80", "127.0.0.1:0", "127.0.0.1:x", "relative", "::1:80"])
def test_only_loopback_and_absolute_paths_are_taken(text: str) -> None:
    with pytest.raises(ValueError, match="expected an absolute path or"):
        parse_address(text)


def test_the_command_line_says_the_two_addresses(tmp_path: Path) -> None:
    command = bridge_command("python", listen=9471, to=tmp_path / "s.sock")

    assert command[3:] == ("--listen", "127.0.0.1:9471", "--to", f"{tmp_path}/s.sock")
    assert parse_address(command[4]) == 9471
    assert parse_address(command[6]) == tmp_path / "s.sock"
