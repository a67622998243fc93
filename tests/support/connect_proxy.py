"""A small HTTP proxy on loopback: CONNECT with basic auth, every byte that passes written down."""

import asyncio
import base64
import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass
class ConnectProxy:
    """What the proxy saw. `names` says where a name leads, as the DNS of the outside would."""

    credentials: str | None
    names: Mapping[str, int]
    status: int | None = None
    port: int = 0
    heads: list[str] = field(default_factory=list)
    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def targets(self) -> list[str]:
        return [head.split(" ")[1] for head in self.heads]

    def _answer(self, head: str) -> int:
        method, target, *_ = head.split(" ")
        if self.status is not None:
            return self.status
        if self.credentials is not None:
            wanted = base64.b64encode(self.credentials.encode()).decode()
            if f"\r\nproxy-authorization: basic {wanted.lower()}\r\n" not in head.lower():
                return 407
            if f"Basic {wanted}\r\n" not in head:
                return 407
        return 200 if method == "CONNECT" and target in self.names else 403

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.heads.append(head)
            status = self._answer(head)
            if status != 200:
                writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
            else:
                far = await asyncio.open_connection("127.0.0.1", self.names[head.split(" ")[1]])
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await asyncio.gather(
                    _copy(reader, far[1], self.up), _copy(far[0], writer, self.down)
                )
        writer.close()


async def _copy(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, record: bytearray
) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            record += data
            sink.write(data)
            await sink.drain()
    with contextlib.suppress(OSError):
        sink.close()


@contextlib.contextmanager
def connect_proxy(
    names: Mapping[str, int], *, credentials: str | None = None, status: int | None = None
) -> Iterator[ConnectProxy]:
    """A proxy that opens the way to `names` (host:port as asked for -> port of 127.0.0.1)."""
    proxy, loop = ConnectProxy(credentials, names, status), asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(proxy.serve, "127.0.0.1", 0))
    proxy.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:

        async def finish() -> None:
            server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(finish(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
