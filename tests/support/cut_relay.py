"""A TCP relay that can be cut like a cable, and delay what passes."""

import contextlib
import random
import socket
import threading
import time
from types import TracebackType
from typing import Self


class Relay:
    """Carries connections to a port of loopback while it is whole.

    Cut, it swallows what comes and answers nothing, as a dead link does. Each piece is late by
    `delay_seconds`; one of `stall` pieces by a second more, which is what a lost packet costs TCP.
    """

    def __init__(self, target: int, *, delay_seconds: float = 0.0, stall: float = 0.0) -> None:
        self._target = target
        self.delay_seconds, self.stall = delay_seconds, stall
        self._whole = threading.Event()
        self._whole.set()
        self._open: set[socket.socket] = set()
        self._draws = random.Random(1)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()
        self._drop()

    def cut(self) -> None:
        """From now on nothing passes."""
        self._whole.clear()

    def mend(self) -> None:
        """The link is there again; what was open over it is not."""
        self._drop()
        self._whole.set()

    def _drop(self) -> None:
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.close()
        self._open.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                self._open |= {near, far}
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                late = self.delay_seconds + (1.0 if self._draws.random() < self.stall else 0.0)
                if late:
                    time.sleep(late)
                if not self._whole.is_set():
                    continue
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.close()
