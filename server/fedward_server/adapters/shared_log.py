"""A hash-chained log that several short commands write, one after the other."""

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from fedward_common.errors import StartError
from fedward_common.log.events import EventLog, utc_now

WAIT_SECONDS: Final = 10.0


class SharedLog:
    """Implements `EventSink`: opens the log for each event, so that no command keeps it.

    For what people do. A process that logs by itself has a log of its own and keeps it open.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._path = path
        self._clock = clock

    def append(self, action: str, **fields: object) -> None:
        """Writes one event; durable when it returns.

        Raises:
            StartError: another process kept the log for ten seconds.
            LedgerError: the log is damaged or its disk full.
        """
        limit = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                log = EventLog(self._path, clock=self._clock)
                break
            except StartError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.05)
        try:
            log.append(action, **fields)
        finally:
            log.close()
