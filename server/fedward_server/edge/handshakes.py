"""Refused TLS handshakes, from the only place where grpc tells of them: its lines on stderr.

A peer that fails the handshake never becomes a call, so no code of ours sees it; grpc closes the
connection and writes one line. This module reads the process's stderr through a pipe, turns those
lines into refusals for the log and passes every other line on unchanged.
"""

import os
import re
import threading
from collections.abc import Callable
from typing import Final, Self

from fedward_common.channel.refusals import Refusal
from fedward_common.errors import FedwardError

_LINE: Final = re.compile(
    rb"Handshake failed with error SSL_ERROR_SSL: error:[0-9a-f]+:[^:]*:[^:]*:"
    rb"(?P<reason>[A-Z0-9_]+)(?:: (?P<verdict>[^\n]*))?"
)
_BY_VERDICT: Final = {
    "certificate has expired": Refusal.CERTIFICATE_EXPIRED,
    "certificate is not yet valid": Refusal.CERTIFICATE_NOT_YET_VALID,
    "unsupported certificate purpose": Refusal.CERTIFICATE_PURPOSE,
}
_BY_REASON: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": Refusal.NO_CERTIFICATE,
    "CERTIFICATE_VERIFY_FAILED": Refusal.UNKNOWN_AUTHORITY,
    "NO_SHARED_CIPHER": Refusal.TLS_VERSION,
    "UNSUPPORTED_PROTOCOL": Refusal.TLS_VERSION,
}


def read_refusal(line: bytes) -> Refusal | None:
    """The refusal that a line of grpc tells of, or None when it tells of something else."""
    match = _LINE.search(line)
    if match is None:
        return None
    reason, verdict = match["reason"].decode(), (match["verdict"] or b"").decode(errors="replace")
    if reason == "CERTIFICATE_VERIFY_FAILED" and verdict.strip() in _BY_VERDICT:
        return _BY_VERDICT[verdict.strip()]
    return _BY_REASON.get(reason, Refusal.HANDSHAKE)


class HandshakeWatch:
    """Reads this process's stderr between `start` and `stop` and reports refused handshakes.

    The first `expected` ones are those of the start-up self-test and are not reported; that they
    were seen proves that this version of grpc still tells of them. `report` runs in the watch's
    own thread.
    """

    def __init__(self, report: Callable[[Refusal], None], *, expected: int = 0) -> None:
        self._report = report
        self._expected = expected
        self._seen_expected = threading.Event()
        self._thread = threading.Thread(target=self._read, name="handshake-watch", daemon=True)
        self._stderr = os.dup(2)
        self._pipe, self._write_end = os.pipe()

    def start(self) -> Self:
        """Puts the pipe before stderr."""
        os.dup2(self._write_end, 2)
        os.close(self._write_end)
        self._thread.start()
        return self

    def saw_expected(self, *, seconds: float) -> bool:
        """Whether the expected refusals came, after waiting up to `seconds` for them."""
        return self._seen_expected.wait(seconds)

    def stop(self) -> None:
        """Gives stderr back; every line written before the call has been passed on."""
        os.dup2(self._stderr, 2)  # the last write end closes, so the reader comes to the end
        self._thread.join()
        os.close(self._stderr)

    def _read(self) -> None:
        with os.fdopen(self._pipe, "rb") as lines:
            for line in lines:
                if (refusal := read_refusal(line)) is None:
                    os.write(self._stderr, line)
                elif self._expected > 0:
                    self._expected -= 1
                    if self._expected == 0:
                        self._seen_expected.set()
                else:
                    self._told(refusal)

    def _told(self, refusal: Refusal) -> None:
        """Reports a refusal. A log that cannot be written (a full disk) must not end this thread:
        the pipe would have no reader, and every later line of the process would be an error.
        """
        try:
            self._report(refusal)
        except FedwardError as error:
            os.write(self._stderr, f"handshake.not-logged {refusal.value} {error.code}\n".encode())
