"""A running sandbox federation for tests that look at real processes."""

import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedward_common.processes import offline_environment
from fedward_common.study.files import SiteKeys, parse_study
from fedward_common.study.signed import SignedStudy
from fedward_server.sandbox.federation import BIN, Federation
from fedward_server.sandbox.result import Outcome, assemble_result
from fedward_server.sandbox.run import Inputs, Prepared, prepare, publish, run_study
from fedward_server.sandbox.settings_files import write_approval

Changes = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class LiveFederation:
    """A federation whose study has run; its processes are up until the session ends.

    `approved` are further signed studies, by name, that every site approved and nobody has run.
    """

    out: Path
    prepared: Prepared
    federation: Federation
    outcome: Outcome
    result: dict[str, Any]
    approved: Mapping[str, SignedStudy]


@contextmanager
def start_live(
    study: Path, folder: Path, *, further: Mapping[str, Changes], opacus_site: str
) -> Iterator[LiveFederation]:
    out = folder / "out"
    prepared = prepare(Inputs.parse(study=study, sites=[], data=None), out=out)
    approved = {
        name: changed_study(prepared, study.read_text(), changes)
        for name, changes in further.items()
    }
    for site in prepared.layout.sites.values():
        text = site.settings_file.read_text()
        for further_study in approved.values():
            write_approval(site, further_study.verify(), now=datetime.now(UTC))
        text = re.sub(r"max_epsilon_(\w+) = .*", r"max_epsilon_\1 = 20.0", text)
        text = re.sub(r"min_noise = .*", "min_noise = 1.0", text)
        if site.site == opacus_site:
            text = f'backend = "opacus"\n{text}'
        site.settings_file.write_text(text)
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
            approved=approved,
        )


def changed_study(prepared: Prepared, text: str, changes: Changes) -> SignedStudy:
    """The study file with these changes, for the same sites, signed by the same lead."""
    for old, new in changes.items():
        if old not in text:
            raise AssertionError(f"the study file has no {old!r}")
        text = text.replace(old, new)
    keys = {
        site.site: SiteKeys(key_sha256=site.key_sha256, node_key_sha256=site.node_key_sha256)
        for site in prepared.layout.sites.values()
    }
    spec = parse_study(
        text, source="changed", keys=keys, lead_key_sha256=prepared.layout.lead_sha256
    )
    return SignedStudy.sign(spec, prepared.layout.lead)


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
