"""The HTTP proxy between this hospital and the coordinator, where site.toml names one.

The proxy is asked to CONNECT and then passes bytes: TLS runs from end to end, so it sees who talks
to whom and nothing else. Only `coordinator.proxy` names it; a variable of the environment never
does, because whoever sets one could not be told from the network's own.
"""

import base64
import ipaddress
import re
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from fedward_client.adapters.key_files import read_secret_file
from fedward_common.errors import ChannelError, ConfigError

PROXY_URL: Final = re.compile(r"http://(\[[0-9A-Fa-f:]+\]|[^\s:/@]+):(\d{1,5})")
MAX_HEAD_BYTES: Final = 8192
WRONG_CREDENTIALS: Final = 407


class ProxyRefused(ChannelError):
    """The proxy did not open the connection; `status` is its HTTP status."""

    def __init__(self, proxy: "Proxy", status: int) -> None:
        if status == WRONG_CREDENTIALS:
            found = (
                "it asks for another user and password (407). Correct the file of "
                "coordinator.proxy_auth_file: one line, user:password"
            )
        else:
            found = (
                f"it answered {status}. Ask the network team to let this host CONNECT to the "
                "coordinator's address and port"
            )
        super().__init__(
            f"proxy {proxy.address}: expected it to open the connection, found {found}"
        )
        self.status = status


@dataclass(frozen=True, kw_only=True, slots=True)
class Proxy:
    """Where the proxy listens, and `user:password` where it asks for them (never printed)."""

    host: str
    port: int
    credentials: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str | None, auth_file: Path | None = None) -> Self | None:
        """The proxy of `url`, or None where there is none.

        Raises:
            ConfigError: no http://host:port, or the file is open to others or holds no credentials.
        """
        if url is None:
            return None
        match = PROXY_URL.fullmatch(url)
        if match is None or not 1 <= int(match[2]) <= 65535:
            raise ConfigError(
                "proxy: expected http://host:port (user and password come from proxy_auth_file), "
                "found something else"
            )
        return cls(
            host=match[1].strip("[]"),
            port=int(match[2]),
            credentials=None if auth_file is None else _credentials(auth_file),
        )

    @property
    def address(self) -> str:
        """host:port, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def authorization(self) -> str | None:
        """The value of Proxy-Authorization (RFC 7617), or None."""
        if self.credentials is None:
            return None
        return f"Basic {base64.b64encode(self.credentials).decode('ascii')}"


def _credentials(path: Path) -> bytes:
    text = read_secret_file(path, what="proxy_auth_file")
    user, colon, _ = text.partition(b":")
    if not user or not colon or not text.isascii():
        raise ConfigError(f"{path}: expected one line, user:password in ASCII, found another form")
    return text


def connect(host: str, port: int, *, proxy: Proxy | None, timeout_seconds: float) -> socket.socket:
    """A TCP connection to host:port, through the proxy where there is one.

    A loopback address is on this host: no proxy stands before it.

    Raises:
        ProxyRefused: the proxy answered, and not with yes.
        OSError: nobody answered.
    """
    if proxy is None or is_loopback(host):
        return socket.create_connection((host.strip("[]"), port), timeout=timeout_seconds)
    with ExitStack() as stack:
        raw = stack.enter_context(
            socket.create_connection((proxy.host, proxy.port), timeout=timeout_seconds)
        )
        _ask(raw, f"{host}:{port}", proxy, limit=time.monotonic() + timeout_seconds)
        raw.settimeout(timeout_seconds)
        stack.pop_all()
    return raw


def _ask(raw: socket.socket, target: str, proxy: Proxy, *, limit: float) -> None:
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    raw.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
    head = b""
    while b"\r\n\r\n" not in head and len(head) < MAX_HEAD_BYTES:
        if (left := limit - time.monotonic()) <= 0:
            raise TimeoutError("the proxy's answer does not end")
        raw.settimeout(left)
        # One byte at a time: what follows belongs to TLS.
        if not (more := raw.recv(1)):
            break
        head += more
    match = re.match(rb"HTTP/1\.[01] (\d{3})[ \r]", head)
    if match is None:
        raise OSError("the proxy does not speak HTTP")
    if not 200 <= int(match[1]) < 300:
        raise ProxyRefused(proxy, int(match[1]))


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine itself, by its name or address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
