"""What an instruction costs a patient, and what its answer may look like, kind by kind."""

import json
import math
from typing import Any

from dp_accounting import DpEvent

from fedward_client.guard.receipts import Live
from fedward_client.ports import Shapes
from fedward_client.statistics import release_of
from fedward_common.arrays import tensor_parts, tensors_from_bytes
from fedward_common.canonical import canonical_json
from fedward_common.errors import ProtocolError
from fedward_common.privacy.mechanism import evaluation_event, release_event, round_event
from fedward_common.privacy.statistics import check_values
from fedward_common.study.evaluation import EvaluationRelease, evaluation_of
from fedward_common.study.kept import released_shapes
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import is_statistics
from fedward_common.wire import Instruction, Octets


def charged_event(instruction: Instruction, study: StudySpec) -> DpEvent:
    """What the instruction costs a patient.

    Raises:
        ProtocolError: the study has no such thing.
        ConfigError: the study asks for statistics, but is not a whole study of statistics.
    """
    if (instruction.kind == "statistics") != is_statistics(study):
        raise ProtocolError(
            f"instruction: expected study {study.id} to have something to {instruction.kind}, "
            f"found its task {study.task.kind}"
        )
    match instruction.kind:
        case "train" | "phase":  # a phase costs nothing itself, but is one of such rounds
            return round_event(study)
        case "evaluate":
            return evaluation_event(_evaluation(study))
        case "statistics":
            return release_event(release_of(instruction, study))
    raise ProtocolError(f"instruction: expected one that costs something, found {instruction.kind}")


def _evaluation(study: StudySpec) -> EvaluationRelease:
    release = evaluation_of(study)
    if release is None:
        raise ProtocolError(
            f"instruction: expected study {study.id} to release an evaluation, found none in it"
        )
    return release


def check_payload(live: Live, payload: Octets, *, shapes: Shapes) -> None:
    """Returns when `payload` is exactly what the study releases for this instruction.

    Raises:
        ProtocolError: other names, shapes, numbers that are not finite, another form of the bytes.
    """
    if live.instruction.kind == "statistics":
        _check_statistics(live, bytes(payload))
        return
    if live.instruction.kind == "train":
        tensors = tensors_from_bytes(
            payload, shapes=released_shapes(live.study, shapes(live.study))
        )
        # The file format has a free-text header; one byte form leaves no room for notes in it.
        # Where that header is the one of these tensors, it says where each one's bytes stand and
        # that nothing stands between them: the rest is the tensors' own bytes.
        head, *rest = tensor_parts(tensors)
        if payload[: len(head)] != head or len(payload) != len(head) + sum(map(len, rest)):
            raise ProtocolError("update: expected the plain bytes of its tensors, found others")
        return
    release = _evaluation(live.study)
    found = _canonical(bytes(payload), what="evaluation")
    if not _is_counts(found, rows=release.rows, bins=release.bins):
        raise ProtocolError(
            f"evaluation: expected {{'counts': {release.rows} x {release.bins} finite numbers}} in "
            "canonical JSON, found something else"
        )


def _check_statistics(live: Live, payload: bytes) -> None:
    value = _canonical(payload, what="statistics")
    if not isinstance(value, dict) or value.keys() != {"values"}:
        raise ProtocolError("statistics: expected {'values': [...]}, found something else")
    check_values(release_of(live.instruction, live.study), live.study.data, value["values"])


def _canonical(payload: bytes, *, what: str) -> Any:
    """The JSON value in `payload`, which has to be its one canonical form."""
    try:
        value: Any = json.loads(payload)
        same = canonical_json(value) == payload
    except (ValueError, RecursionError, ProtocolError) as error:
        raise ProtocolError(f"{what}: expected JSON, found something else") from error
    if not same:
        raise ProtocolError(f"{what}: expected canonical JSON (RFC 8785), found another form")
    return value


def _is_counts(value: Any, *, rows: int, bins: int) -> bool:
    if not isinstance(value, dict) or value.keys() != {"counts"}:
        return False
    found = value["counts"]
    return (
        isinstance(found, list)
        and len(found) == rows
        and all(isinstance(row, list) and len(row) == bins for row in found)
        and all(type(n) in (int, float) and math.isfinite(n) for row in found for n in row)
    )
