"""A small study of statistics and tables for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedward_common.canonical import canonical_json
from fedward_common.study.files import SiteKeys
from fedward_common.study.spec import StudySpec
from fedward_common.wire import Envelope, Instruction, Reply
from tests.support.federation import FakeSite
from tests.support.studies import LEAD, SITES, site_keys

COLUMNS = [
    {"name": "age", "type": "number", "unit": "years", "low": 20.0, "high": 100.0},
    {"name": "pain", "type": "category", "values": ["1", "2", "3"]},
]


def a_release(**changes: Any) -> dict[str, Any]:
    """Everything about both columns, Gaussian noise."""
    return {
        "kind": "column-statistics",
        "columns": ["age", "pain"],
        "statistics": ["count", "missing", "mean", "variance", "histogram"],
        "bins": 4,
        "noise_multiplier": 2.0,
    } | changes


def statistics_document(
    *,
    releases: Sequence[dict[str, Any]] = (),
    sites: Sequence[str] = SITES,
    keys: Mapping[str, SiteKeys] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """The JSON object of a whole study of statistics."""
    found = list(releases) or [a_release()]
    return {
        "id": "who",
        "title": "Who are our patients?",
        "task": {"kind": "federated-statistics"},
        "model": {"name": "none"},
        "data": {"kind": "table", "patient_key": "patient_id", "columns": COLUMNS},
        "dp": {"kind": "releases-only", "epsilon": 9.0, "delta": 1e-4},
        "training": {"learning_rate": 1.0},
        "aggregation": {"name": "fedavg"},
        "releases": found,
        "rounds": len(found),
        "local_steps": 1,
        "quorum": max(1, len(sites) - 1),
        "deadline_seconds": 30.0,
        "sites": [
            {
                "id": site,
                "patients": 100,
                "key_sha256": own.key_sha256,
                "node_key_sha256": own.node_key_sha256,
            }
            for site, own in (keys or site_keys(sites)).items()
        ],
        "lead_key_sha256": LEAD,
    } | changes


def statistics_study(**changes: Any) -> StudySpec:
    """A valid study of statistics."""
    return StudySpec.model_validate(statistics_document(**changes))


def rows_of(*patients: tuple[str, str, str]) -> list[dict[str, str]]:
    """Rows (patient id, age, pain)."""
    return [{"patient_id": p, "age": a, "pain": c} for p, a, c in patients]


class NoNoise:
    """A `RandomSource` whose noise is zero."""

    def uniform(self, count: int) -> Any:
        raise NotImplementedError

    def normal(self, count: int) -> Any:
        return np.zeros(count)


@dataclass(kw_only=True)
class CountingSite(FakeSite):
    """A site that answers statistics with `values` (one list per release), and shows `head`."""

    values: list[list[float | int | None]] = field(default_factory=list)
    head: tuple[int, str] | None = None

    def answer(self, envelope: Envelope) -> Envelope | None:
        instruction = Instruction.parse(envelope.header)
        if instruction.kind != "statistics":
            return self.with_head(super().answer(envelope))
        self.seen.append(instruction)
        payload = canonical_json({"values": self.values[instruction.round - 1]})
        return self.with_head(self.tamper(self.sealed(instruction, payload, kind="statistics")))

    def with_head(self, envelope: Envelope | None) -> Envelope | None:
        """The same answer, signed again with the head of the site's ledger."""
        if envelope is None or self.head is None:
            return envelope
        seq, sha256 = self.head
        reply = Reply.parse(envelope.header).model_copy(
            update={"ledger_seq": seq, "ledger_sha256": sha256, "signature": ""}
        )
        signed = reply.model_copy(update={"signature": self.key.sign(reply.signed_bytes).hex()})
        return Envelope(header=signed.canonical, blobs=envelope.blobs)
