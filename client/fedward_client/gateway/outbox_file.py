"""What the gateway knows of replies under way, kept for the one that is started after it.

Without it a gateway killed between an instruction and its reply would refuse the reply as one to
an instruction that never came in. Names and numbers of messages only, 0600, beside the spool. It
outlives the process, not the machine: a reply under way does not either.
"""

import json
import os
from pathlib import Path

import structlog

from fedward_client.gateway.outbox import Outbox

NAME = "outbox.json"

_log = structlog.get_logger(__name__)


class OutboxFile:
    """Where the outbox lies between two lives of the gateway."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def load(self) -> Outbox:
        """The outbox as it was left; an empty one where there is none that can be read."""
        outbox = Outbox()
        try:
            outbox.restore(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("gateway.outbox-lost", error=type(error).__name__)
            outbox = Outbox()
        return outbox

    def save(self, outbox: Outbox, *, now: float) -> None:
        """Keeps it; a disk that is full costs the next life's knowledge and nothing else."""
        beside = self._path.with_suffix(".new")
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(outbox.snapshot(now=now)).encode())
            beside.replace(self._path)
        except OSError as error:
            _log.warning("gateway.outbox-not-kept", error=type(error).__name__)
