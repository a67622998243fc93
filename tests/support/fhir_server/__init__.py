"""A real FHIR R4 server for tests: Medplum's router, on loopback, as a process of Node.

Import the fixture where it is needed:

    from tests.support.fhir_server import fhir_server  # noqa: F401
"""

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"


@dataclass(frozen=True, kw_only=True)
class RunningFhirServer:
    """A server with its base address and the bearer token that it wants."""

    url: str
    token: str
    port: int


def missing() -> str | None:
    """What is not installed here, in words; None where everything is."""
    if shutil.which("node") is None:
        return "needs Node: make ci-deps installs Debian's"
    if not (MODULES / "@medplum" / "fhir-router").is_dir():
        return "needs @medplum/fhir-router: make ci-deps installs it"
    return None


@contextmanager
def running_fhir_server(
    resources: Sequence[dict[str, Any]], folder: Path
) -> Iterator[RunningFhirServer]:
    """A server that holds `resources` in memory; the caller has asked `missing`."""
    data, token = folder / "served.ndjson", secrets.token_hex(16)
    data.write_text("".join(json.dumps(one) + "\n" for one in resources), encoding="utf-8")
    process = subprocess.Popen(
        ["node", str(HERE / "server.mjs"), str(MODULES), str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "FHIR_TOKEN": token},
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line.strip().isdigit():
            raise AssertionError("the FHIR server did not start")
        port = int(line)
        yield RunningFhirServer(url=f"http://127.0.0.1:{port}/fhir/R4", token=token, port=port)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def fhir_server(
    tmp_path: Path,
) -> Iterator[Callable[[Sequence[dict[str, Any]]], RunningFhirServer]]:
    """Starts servers with given resources; skipped where Node or Medplum's router is not here."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with ExitStack() as stack:
        yield lambda resources: stack.enter_context(running_fhir_server(resources, tmp_path))
