"""One round as a state machine without I/O: who was asked, who answered, whether it counts.

collecting -> aggregated -> committed, or collecting -> abandoned. A round with fewer good replies
than the quorum is abandoned, never counted as done, and its number is burnt (rules 5).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId


class Phase(Enum):
    """Where a round stands."""

    COLLECTING = "collecting"
    AGGREGATED = "aggregated"
    COMMITTED = "committed"
    ABANDONED = "abandoned"


@dataclass(kw_only=True, slots=True)
class RoundState:
    """The state of one round. `opened_at` and every `now` are seconds on one monotonic clock."""

    number: int
    cohort: tuple[SiteId, ...]
    quorum: int
    opened_at: float
    deadline_seconds: float
    phase: Phase = Phase.COLLECTING
    accepted: list[SiteId] = field(default_factory=list)
    refused: dict[SiteId, str] = field(default_factory=dict)
    lost: dict[SiteId, str] = field(default_factory=dict)

    def expects(self, site: SiteId) -> None:
        """Returns when an answer of `site` is due; a ProtocolError names site and stage if not."""
        if self.phase is not Phase.COLLECTING:
            raise ProtocolError(
                f"round {self.number}: expected no answer after {self.phase.value}, "
                f"found one of {site}"
            )
        if site not in self.cohort:
            raise ProtocolError(
                f"round {self.number}: expected answers of {list(self.cohort)}, found one of {site}"
            )
        if site in self.answered:
            raise ProtocolError(
                f"round {self.number}: expected one answer of {site}, found a second"
            )

    def accept(self, site: SiteId) -> None:
        """Counts a good reply. Raises ProtocolError when none is due."""
        self.expects(site)
        self.accepted.append(site)

    def refuse(self, site: SiteId, code: str) -> None:
        """Notes that the site refused. Raises ProtocolError when no answer is due."""
        self.expects(site)
        self.refused[site] = code

    def lose(self, site: SiteId, reason: str) -> None:
        """Notes that no usable reply will come. Raises ProtocolError when none is due."""
        self.expects(site)
        self.lost[site] = reason

    @property
    def answered(self) -> frozenset[SiteId]:
        """The sites that need not be waited for any more."""
        return frozenset(self.accepted) | self.refused.keys() | self.lost.keys()

    @property
    def missing(self) -> tuple[SiteId, ...]:
        """The sites that are still to answer, in cohort order."""
        return tuple(site for site in self.cohort if site not in self.answered)

    def seconds_left(self, now: float) -> float:
        """Seconds to the deadline, never negative."""
        return max(0.0, self.opened_at + self.deadline_seconds - now)

    def closed(self, now: float) -> bool:
        """Whether waiting is over: all answered, deadline passed, or quorum out of reach."""
        out_of_reach = len(self.accepted) + len(self.missing) < self.quorum
        return not self.missing or out_of_reach or self.seconds_left(now) == 0.0

    @property
    def has_quorum(self) -> bool:
        """Whether enough good replies came for the round to count."""
        return len(self.accepted) >= self.quorum

    def aggregate(self) -> None:
        """Closes the round for aggregation. Calling it below quorum is a programming error."""
        if self.phase is not Phase.COLLECTING or not self.has_quorum:
            raise RuntimeError(
                f"round {self.number} cannot be aggregated: {self.phase.value}, "
                f"{len(self.accepted)} replies"
            )
        self.phase = Phase.AGGREGATED

    def commit(self) -> None:
        """Marks the round as done, after its model is durable."""
        if self.phase is not Phase.AGGREGATED:
            raise RuntimeError(f"round {self.number} cannot be committed: {self.phase.value}")
        self.phase = Phase.COMMITTED

    def abandon(self) -> None:
        """Burns the round. Only a round that is still collecting can be abandoned."""
        if self.phase is not Phase.COLLECTING:
            raise RuntimeError(f"round {self.number} cannot be abandoned: {self.phase.value}")
        self.phase = Phase.ABANDONED


def describe(sites: Iterable[SiteId]) -> str:
    """Site ids for a message, or `none`."""
    return ", ".join(sites) or "none"
