"""The way into a private network: bytes between a 0600 Unix socket and a port of loopback.

`python -m fedward_common.bridge --listen 127.0.0.1:9471 --to /run/fedward/fleet/fleet.sock` runs
inside the namespace and offers a Unix socket of outside as a port; with the two sides exchanged it
offers a port of inside as a Unix socket. It reads nothing of what it carries: TLS goes through.
"""

import argparse
import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final

from fedward_common.entry import run_program
from fedward_common.errors import StartError
from fedward_common.processes import until_set
from fedward_common.unix_sockets import listen_unix, peer_uid

LOOPBACK: Final = "127.0.0.1"
MAX_CONNECTIONS: Final = 256
RETRY_SECONDS: Final = 0.05

Address = Path | int
"""A Unix socket, or a port of 127.0.0.1."""


def parse_address(text: str) -> Address:
    """An absolute path or 127.0.0.1:PORT; nothing else is ever listened on or connected to.

    Raises:
        ValueError: something else.
    """
    if text.startswith("/"):
        return Path(text)
    host, _, port = text.rpartition(":")
    if host != LOOPBACK or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"expected an absolute path or {LOOPBACK}:PORT")
    return int(port)


class _End(asyncio.Protocol):
    """One end of a carried connection: what arrives here is written at the other end."""

    def __init__(self, other: "_End | None" = None) -> None:
        self.other = other
        self.transport: asyncio.Transport | None = None
        self.ended = False

    @property
    def _opposite(self) -> asyncio.Transport | None:
        return None if self.other is None else self.other.transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._opposite is not None:
            self._opposite.write(data)

    def eof_received(self) -> bool:
        """One side has said all: the other direction stays open, until that has ended as well."""
        self.ended = True
        if self.other is None or self.other.ended:
            return False
        if self._opposite is not None and self._opposite.can_write_eof():
            self._opposite.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._opposite is not None:
            self._opposite.close()

    def pause_writing(self) -> None:
        if self._opposite is not None:
            self._opposite.pause_reading()

    def resume_writing(self) -> None:
        if self._opposite is not None and not self._opposite.is_closing():
            self._opposite.resume_reading()


class _Arrival(_End):
    """The end that somebody connected to."""

    def __init__(self, bridge: "Bridge") -> None:
        super().__init__()
        self._bridge = bridge

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._bridge.arrived(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._bridge.left(self)


class Bridge:
    """Carries every connection at `listen` to `to`, up to MAX_CONNECTIONS at a time."""

    def __init__(self, *, listen: Address, to: Address) -> None:
        self._listen = listen
        self._to = to
        self._carried: set[_Arrival] = set()
        self._joining: set[asyncio.Task[None]] = set()

    async def serve(self, stop: asyncio.Event) -> None:
        """Serves until `stop`. A Unix socket appears when the port behind it answers, not before.

        Raises:
            StartError: it cannot listen.
        """
        if isinstance(self._listen, Path):
            await self._until_answered(stop)
            listener = listen_unix(self._listen)
        else:
            listener = _listen_port(self._listen)
        server = await asyncio.get_running_loop().create_server(
            lambda: _Arrival(self), sock=listener, backlog=MAX_CONNECTIONS
        )
        try:
            await until_set(stop)
        finally:
            server.close()
            if isinstance(self._listen, Path):
                self._listen.unlink(missing_ok=True)

    def arrived(self, end: _Arrival) -> None:
        """Takes a new connection, or closes it: too many, or another user's."""
        if end.transport is None:
            return
        if len(self._carried) >= MAX_CONNECTIONS or not self._welcome(end.transport):
            end.transport.abort()
            return
        end.transport.pause_reading()
        self._carried.add(end)
        task = asyncio.get_running_loop().create_task(self._join(end, end.transport))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    def left(self, end: _Arrival) -> None:
        """Forgets a connection that has ended."""
        self._carried.discard(end)

    def _welcome(self, transport: asyncio.Transport) -> bool:
        if isinstance(self._listen, int):
            return True  # a port of a private network: whoever is in it may
        return peer_uid(transport.get_extra_info("socket")) in (os.geteuid(), 0)

    async def _join(self, near: _Arrival, transport: asyncio.Transport) -> None:
        far = _End(near)
        try:
            await self._connect(lambda: far)
        except OSError:
            transport.abort()
            return
        near.other = far
        if transport.is_closing() and far.transport is not None:
            far.transport.close()
        else:
            transport.resume_reading()

    async def _until_answered(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            end = _End()
            try:
                await self._connect(lambda: end)  # noqa: B023 - called before the next turn
            except OSError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if end.transport is not None:
                end.transport.close()
            return

    def _connect(self, end: Callable[[], _End]) -> Coroutine[None, None, object]:
        loop = asyncio.get_running_loop()
        if isinstance(self._to, Path):
            return loop.create_unix_connection(end, str(self._to))
        return loop.create_connection(end, LOOPBACK, self._to)


def _listen_port(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
    except OSError as error:
        listener.close()
        raise StartError(
            f"bridge: expected port {port} of {LOOPBACK} to be free, found {error.strerror}. Stop "
            "what listens there or set another port"
        ) from error
    return listener


async def _serve(bridge: Bridge) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await bridge.serve(stop)


def bridge_command(program: str, *, listen: Address, to: Address) -> tuple[str, ...]:
    """The command line that starts a bridge with this Python."""
    options = ("--listen", _text(listen), "--to", _text(to))
    return (program, "-m", "fedward_common.bridge", *options)


def _text(address: Address) -> str:
    return str(address.absolute()) if isinstance(address, Path) else f"{LOOPBACK}:{address}"


def main() -> None:
    """The program: serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="fedward_common.bridge", description=__doc__)
    parser.add_argument("--listen", type=parse_address, required=True)
    parser.add_argument("--to", type=parse_address, required=True)
    asked = parser.parse_args()
    os.umask(0o077)
    run_program(
        lambda: asyncio.run(_serve(Bridge(listen=asked.listen, to=asked.to))), name="bridge"
    )


if __name__ == "__main__":
    main()
