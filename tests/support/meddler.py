"""A SuperLink that misbehaves: stands before the real one, on the socket that leads to it.

What the edge and the coordinator's own commands ask goes through here; the ServerApp talks to
SuperLink directly. A rule looks at every call and says what becomes of it.
"""

import http.client
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from fedward_server.settings import CoordinatorSettings

SECONDS: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What becomes of a call: an answer of our own, or SuperLink's, late, twice or lost."""

    status: int = 0
    late_seconds: float = 0.0
    twice: bool = False
    lose: Callable[[bytes], bool] = lambda _body: False
    """Whether SuperLink's answer is lost on the way back."""


PASS: Final = Fate()
Rule = Callable[[str], Fate]
"""The fate of a call by its path."""


class Meddler:
    """Takes SuperLink's place on its socket while it is entered."""

    def __init__(self, settings: CoordinatorSettings, rule: Rule) -> None:
        self._path = settings.superlink_socket
        self._real = self._path.with_name("superlink-real.sock")
        self.loopback = settings.state / "loopback"
        self.rule = rule
        self.port = settings.superlink_port

    def __enter__(self) -> Self:
        self._path.rename(self._real)
        self._server = _Server(str(self._path), self)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        if self._real.is_socket():
            self._real.rename(self._path)

    def ask(
        self, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """SuperLink's own answer."""
        connection = _Upstream(self._real, self.loopback / "ca.pem")
        try:
            connection.request("POST", path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()


class _Upstream(http.client.HTTPSConnection):
    def __init__(self, path: Path, ca: Path) -> None:
        self._ssl = ssl.create_default_context(cafile=str(ca))
        super().__init__("127.0.0.1", timeout=SECONDS, context=self._ssl)
        self._path = path

    def connect(self) -> None:
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        plain.settimeout(SECONDS)
        plain.connect(str(self._path))
        self.sock = self._ssl.wrap_socket(plain, server_hostname="127.0.0.1")


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 256  # five, as it is by itself, is a fault of its own

    def __init__(self, path: str, meddler: Meddler) -> None:
        self.meddler = meddler
        self._ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ssl.load_cert_chain(meddler.loopback / "cert.pem", meddler.loopback / "key.pem")
        super().__init__(path, _Handler)
        Path(path).chmod(0o600)

    def finish_request(self, request: object, client_address: object) -> None:
        with suppress(OSError):
            wrapped = self._ssl.wrap_socket(request, server_side=True)  # type: ignore[arg-type]
            self.RequestHandlerClass(wrapped, ("", 0), self)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        """A caller that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest shows what matters."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        meddler = self.server.meddler
        fate = meddler.rule(self.path)
        if fate.status:
            self._answer(fate.status, {}, b"")
            return
        time.sleep(fate.late_seconds)
        kept = ("host", "connection", "content-length", "transfer-encoding", "accept-encoding")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in kept}
        if fate.twice:
            meddler.ask(self.path, headers, body)
        status, back, content = meddler.ask(self.path, headers, body)
        if fate.lose(content):
            self.close_connection = True
            self.connection.close()
            return
        self._answer(status, back, content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def times(count: int) -> Iterator[bool]:
    """True so many times, then false for ever."""
    yield from [True] * count
    while True:
        yield False
