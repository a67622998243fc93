"""The plain values of a ledger: what the hospital allows, and where the ledger ends.

Apart from the ledger on purpose: processes that only pass these on need not import an accountant,
which takes more than a second.
"""

from dataclasses import dataclass
from typing import Final

GENESIS: Final = "0" * 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the hospital allows, as admission figures.

    `max_epsilon_per_study` holds at each study's own delta, which may not exceed `delta`;
    `max_epsilon_total`, for all reservations together, holds at `delta`. So the hospital's total
    has one delta of its own, and the deltas of studies are never added up. The total is counted by
    a Renyi filter of one order, which the first reservation fixes (see `accounting`): it holds also
    when studies are chosen after results were seen, and a limit that is raised later holds as if it
    had been that high from the start. Where results led to the rise, what holds is the highest
    limit that any result would have led to: the total must not follow what was found.

    `max_epsilon_if_all_others_collude` is the total for the case that of distributed noise only
    this hospital's own share protects (rules 2), by a filter of its own; unset, it is the same.
    """

    max_epsilon_per_study: float
    max_epsilon_total: float
    delta: float
    max_epsilon_if_all_others_collude: float | None = None

    @property
    def colluding(self) -> float:
        """The limit of the total if all others collude."""
        limit = self.max_epsilon_if_all_others_collude
        return self.max_epsilon_total if limit is None else limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The last row of a ledger: its number and its hash. An empty ledger has seq 0."""

    seq: int = 0
    sha256: str = GENESIS
