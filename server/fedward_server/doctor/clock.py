"""The coordinator's clock: certificates, invites and Flower's signatures are judged by it."""

import ctypes
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from fedward_common.doctor import Finding, fail, ok, warn
from fedward_common.errors import LedgerError
from fedward_common.log.events import verify

WENT_BACK: Final = timedelta(seconds=60)
TIME_ERROR: Final = 5
"""What adjtimex(2) returns while nobody sets the clock."""
TIMEX_BYTES: Final = 512
"""More than a struct timex has anywhere; its first field, `modes`, is 0: only asked, not set."""


def clock(
    name: str, *, now: datetime, newest: datetime | None, kept: bool | None = None
) -> Finding:
    """Whether the clock went back behind the log, and whether the kernel knows it as set by NTP.

    `kept`: the kernel's word, asked here when it is not given.
    """
    if newest is not None and newest - now > WENT_BACK:
        return fail(
            name,
            f"{now:%Y-%m-%d %H:%M} UTC is before the last line of the edge's log",
            "Set the clock by NTP; look at the log's times before you trust what it says",
        )
    if kept is None:
        kept = kernel_is_kept()
    if kept is False:
        return warn(
            name,
            "the kernel does not know it as set by NTP",
            "Run an NTP client (chrony, systemd-timesyncd). In a container: look at the host",
        )
    return ok(name, "set by NTP" if kept else "after the last line of the log")


def kernel_is_kept() -> bool | None:
    """Whether something keeps the kernel's clock; None where it does not say."""
    asked = getattr(ctypes.CDLL(None, use_errno=True), "adjtimex", None)
    if asked is None:
        return None
    state = int(asked(ctypes.create_string_buffer(TIMEX_BYTES)))
    return None if state < 0 else state != TIME_ERROR


def last_line(log: Path) -> datetime | None:
    """When the last event of a log was written; None without one, or with a broken chain."""
    try:
        newest = verify(log).last_time
    except (LedgerError, OSError):
        return None
    return None if newest is None else datetime.fromisoformat(newest)
