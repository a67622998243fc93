"""What an instruction costs a patient, and what its answer may look like, kind by kind."""

import json
import math
from typing import Any

from dp_accounting import DpEvent

from fedward_client.guard.receipts import Live
from fedward_client.ports import Shapes
from fedward_common.arrays import tensors_from_bytes, tensors_to_bytes
from fedward_common.canonical import canonical_json
from fedward_common.errors import ProtocolError
from fedward_common.privacy.mechanism import release_event, round_event
from fedward_common.study.spec import StudySpec
from fedward_common.study.tabular import BinnedScores
from fedward_common.wire import Instruction


def charged_event(instruction: Instruction, study: StudySpec) -> DpEvent:
    """What the instruction costs a patient; ProtocolError where the study has no such thing."""
    return round_event(study) if instruction.kind == "train" else release_event(_evaluation(study))


def _evaluation(study: StudySpec) -> BinnedScores:
    release = next((r for r in study.releases if isinstance(r, BinnedScores)), None)
    if release is None:
        raise ProtocolError(
            f"instruction: expected study {study.id} to release an evaluation, found none in it"
        )
    return release


def check_payload(live: Live, payload: bytes, *, shapes: Shapes) -> None:
    """Returns when `payload` is exactly what the study releases for this instruction.

    Raises:
        ProtocolError: other names, shapes, numbers that are not finite, another form of the bytes.
    """
    if live.instruction.kind == "train":
        tensors = tensors_from_bytes(payload, shapes=shapes(live.study))
        # The file format has a free-text header; one byte form leaves no room for notes in it.
        if tensors_to_bytes(tensors) != payload:
            raise ProtocolError("update: expected the plain bytes of its tensors, found others")
        return
    bins = _evaluation(live.study).bins
    try:
        value: Any = json.loads(payload)
        same = canonical_json(value) == payload
    except (ValueError, RecursionError, ProtocolError) as error:
        raise ProtocolError("evaluation: expected JSON, found something else") from error
    if not same or not _is_counts(value, bins=bins):
        raise ProtocolError(
            f"evaluation: expected {{'counts': 2 x {bins} finite numbers}} in canonical JSON, "
            "found something else"
        )


def _is_counts(value: Any, *, bins: int) -> bool:
    if not isinstance(value, dict) or value.keys() != {"counts"}:
        return False
    rows = value["counts"]
    return (
        isinstance(rows, list)
        and len(rows) == 2
        and all(isinstance(row, list) and len(row) == bins for row in rows)
        and all(type(n) in (int, float) and math.isfinite(n) for row in rows for n in row)
    )
