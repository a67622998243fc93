"""What every result file says of its run: when, on what machine, with which versions."""

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any


def facts(packages: Iterable[str]) -> dict[str, Any]:
    """The date, the machine with its load, and the versions of `packages`."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {name: version(name) for name in packages},
    }
