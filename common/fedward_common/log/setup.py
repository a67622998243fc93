"""What processes print about themselves: structlog on stderr, with allow-listed keys only."""

import logging
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from io import TextIOBase
from typing import Any, TextIO, cast

import structlog

from fedward_common.log.fields import LogFieldError, checked, known

OWN_KEYS = frozenset({"event", "level", "timestamp"})
EVENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
UNNAMED = "log.unnamed"


def configure_logging(
    *, process: str, strict: bool = False, as_json: bool | None = None, stream: TextIO | None = None
) -> None:
    """Sends the process's log to stderr: one JSON object per line, or readable text on a terminal.

    Keys that log/fields.py does not know, and values it does not allow, are dropped; with `strict`
    (tests) they raise. The event itself is a name like `round.charged`: a sentence could hold a
    value, and becomes `log.unnamed`. An exception is logged by the name of its class, for its text
    and its traceback could hold values.

    Args:
        process: the name that every line carries.
        strict: raise on an unknown key instead of dropping it.
        as_json: JSON lines or readable text; by default JSON unless the stream is a terminal.
        stream: where to write, stderr by default.
    """
    target = sys.stderr if stream is None else stream
    readable = target.isatty() if as_json is None else not as_json
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=target.isatty())
        if readable
        else structlog.processors.JSONRenderer(sort_keys=True)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _exceptions_by_name,
            _AllowedKeys(process=process, strict=strict),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Forgiving(target))),
        cache_logger_on_first_use=False,
    )


class _Forgiving(TextIOBase):
    """A stream that drops what cannot be written: a disk full of logs must end no process.

    What has to be on disk before something happens goes into a journal, not here.
    """

    def __init__(self, target: TextIO) -> None:
        self._target = target

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._target.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._target.flush()


def _exceptions_by_name(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replaces a traceback by the class of its exception."""
    del logger, method
    found = event.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()
    if isinstance(found, tuple):
        found = found[1]
    if isinstance(found, BaseException):
        event["error"] = type(found).__name__
    event.pop("stack_info", None)
    return event


class _AllowedKeys:
    """Keeps the keys of log/fields.py and the process name."""

    def __init__(self, *, process: str, strict: bool) -> None:
        self._process = process
        self._strict = strict

    def __call__(
        self, logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        del logger, method
        own = {key: value for key, value in event.items() if key in OWN_KEYS}
        rest = {key: value for key, value in event.items() if key not in OWN_KEYS}
        allowed = checked(rest) if self._strict else known(rest)
        if not EVENT.fullmatch(str(own.get("event", ""))):
            if self._strict:
                raise LogFieldError("log event: expected a name like 'round.charged'")
            own["event"] = UNNAMED
        return {"process": self._process, **allowed, **own}
