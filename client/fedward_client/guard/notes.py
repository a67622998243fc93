"""How the guard writes about an instruction in its journal."""

from typing import Final

from fedward_client.ports import Journal
from fedward_common.errors import BudgetExceeded, FedwardError, PolicyRefused
from fedward_common.wire import Instruction

MAX_REASON: Final = 500


def note(log: Journal, action: str, instruction: Instruction, **fields: object) -> None:
    """Writes one event about an instruction."""
    log.append(
        action,
        kind=instruction.kind,
        study=instruction.study,
        round=instruction.round,
        attempt=instruction.attempt,
        **fields,
    )


def reason(error: FedwardError) -> dict[str, str]:
    """The code of an error, and its sentence where that is about policy and budget alone.

    Those sentences are made of site.toml and the signed study; the site's own people read them.
    """
    if not isinstance(error, PolicyRefused | BudgetExceeded):
        return {"code": error.code}
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return {"code": error.code, "reason": text[:MAX_REASON]}
