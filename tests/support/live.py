"""A running sandbox federation for tests that look at real processes."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedward_common.processes import offline_environment
from fedward_server.sandbox.federation import BIN, Federation
from fedward_server.sandbox.result import Outcome, assemble_result
from fedward_server.sandbox.run import Inputs, Prepared, prepare, publish, run_study


@dataclass(frozen=True, kw_only=True)
class LiveFederation:
    """A federation whose study has run; its processes are up until the session ends."""

    out: Path
    prepared: Prepared
    federation: Federation
    outcome: Outcome
    result: dict[str, Any]


@contextmanager
def start_live(study: Path, folder: Path) -> Iterator[LiveFederation]:
    out = folder / "out"
    prepared = prepare(Inputs.parse(study=study, sites=[], data=None), out=out)
    started = time.monotonic()
    with Federation(prepared.layout) as federation:
        outcome = run_study(federation, prepared, view=None)
        result = assemble_result(
            prepared.study, prepared.copy, outcome, seconds=time.monotonic() - started
        )
        publish(result, prepared, outcome, out=out)
        yield LiveFederation(
            out=out,
            prepared=prepared,
            federation=federation,
            outcome=outcome,
            # As a reader of result.json sees it.
            result=json.loads((out / "result.json").read_text()),
        )


def program(
    name: str, *arguments: object, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Runs one of the installed programs as a person would."""
    return subprocess.run(
        [str(BIN / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=offline_environment(),
        timeout=timeout,
    )
