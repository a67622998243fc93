"""The fields that may stand in a log, and what each may hold. Unknown means no.

Every field is an identifier, a digest, a number or a word from a small alphabet; none has room for
a value from patient data. `reason` alone takes a sentence: on the coordinator, of public facts.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Final

from fedward_common.ids import DIGEST, LABEL

Check = Callable[[object], bool]
MAX_ITEMS: Final = 1000


def _matching(pattern: str) -> Check:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _truth(value: object) -> bool:
    return isinstance(value, bool)


def _several(check: Check) -> Check:
    return lambda value: (
        isinstance(value, list | tuple) and len(value) <= MAX_ITEMS and all(map(check, value))
    )


_label = _matching(LABEL)
_digest = _matching(DIGEST)
_word = _matching(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_route = _matching(r"[A-Za-z0-9_./-]{1,128}")
_sentence = _matching(r"[^\x00-\x1f\x7f\u0080-\u009f\u2028\u2029]{0,500}")
_node = _matching(r"-?\d{1,20}")

FIELDS: Final[Mapping[str, Check]] = {
    # who
    "site": _label,
    "sites": _several(_label),
    "cohort": _several(_label),
    "federation": _word,
    # 64 bits do not fit a JSON number: node and run ids are written as text.
    "node": _node,
    "nodes": _whole,
    "process": _word,
    "pid": _whole,
    "uid": _whole,
    "peer": _word,
    # what
    "study": _digest,
    "study_id": _label,
    "run": _word,
    "round": _whole,
    "rounds": _whole,
    "attempt": _whole,
    "kind": _word,
    "purpose": _word,
    "direction": _matching(r"in|out"),
    "route": _route,
    "message_id": _word,
    "objects": _whole,
    # digests
    "sha256": _digest,
    "key": _digest,
    "model_sha256": _digest,
    "roster_sha256": _digest,
    "payload_sha256": _digest,
    "bundle_sha256": _digest,
    "certificate_sha256": _digest,
    "key_sha256": _digest,
    "head_sha256": _digest,
    "policy_sha256": _digest,
    # how much
    "bytes": _whole,
    "count": _whole,
    "good": _whole,
    "quorum": _whole,
    "refused": lambda value: _whole(value) or _sentence(value),
    "lost": lambda value: _whole(value) or _sentence(value),
    "ledger_seq": _whole,
    "seconds": _number,
    "epsilon": _number,
    "delta": _number,
    "noise_multiplier": _number,
    "epsilon_is": _word,
    "port": _whole,
    "address": _word,
    # how it ended
    "code": _word,
    "status": lambda value: _word(value) or _whole(value),
    "error": _word,
    "exit_code": lambda value: isinstance(value, int) and abs(value) < 2**31,
    "allowed": _truth,
    "repeated": _truth,
    "reason": _sentence,
    "version": _word,
    "cut_bytes": _whole,
    "not_before": _word,
    "not_after": _word,
}
"""Field -> what it may hold."""


class LogFieldError(ValueError):
    """A programming error: a field that is not in FIELDS, or a value that it may not hold."""


def checked(fields: Mapping[str, object]) -> dict[str, object]:
    """`fields`, each known and within what it may hold.

    Raises:
        LogFieldError: names the field, never its value.
    """
    for name, value in fields.items():
        check = FIELDS.get(name)
        if check is None:
            raise LogFieldError(f"log field {name!r}: expected one of log/fields.py")
        if not check(value):
            raise LogFieldError(f"log field {name!r}: expected another form or type of value")
    return dict(fields)


def known(fields: Mapping[str, object]) -> dict[str, object]:
    """The part of `fields` that `checked` accepts; production drops the rest."""
    return {name: value for name, value in fields.items() if name in FIELDS and FIELDS[name](value)}
