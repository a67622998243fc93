"""Phases at the edge: who may join, which step each site has, and what is passed on. No I/O.

The ServerApp opens a phase for the sites of a study; each site has at most one stream in it. A site
is known by its certificate, so what comes up its stream is reported under its own name only.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from fedward_common.channel.phase_pb2 import PhaseDown, PhaseEvent, PhaseStep
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.ids import SiteId

MAX_PHASES: Final = 64

Report = Callable[[PhaseEvent], None]
"""Hands an event to the ServerApp of a phase."""


@dataclass(eq=False, kw_only=True, slots=True)
class Seat:
    """One site's stream in a phase: at most one step waits for it, the newest."""

    site: SiteId
    _step: PhaseStep | None = None
    _handed: int = 0
    _answered: int = 0
    _ended: bool = False
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def hand(self, step: PhaseStep) -> None:
        """Gives the site its next step; one that it did not get yet is replaced."""
        self._step = step
        self._news.set()

    def end(self) -> None:
        """The phase is over for this stream."""
        self._ended = True
        self._news.set()

    async def next(self) -> PhaseDown:
        """What goes down next; waits for it. After `ended` nothing follows."""
        await self._news.wait()
        if self._ended:
            return PhaseDown(ended=True)
        step, self._step = self._step, None
        self._news.clear()
        if step is None:
            return await self.next()
        self._handed = step.number
        return PhaseDown(step=step)

    def takes(self, number: int) -> bool:
        """Whether an answer is to the newest step; one to a step before it is late.

        Raises:
            CallRefused: MALFORMED; that step was never handed out, or was answered before.
        """
        if not self._answered < number <= self._handed:
            raise CallRefused(
                Refusal.MALFORMED, f"{self.site}: expected one answer to a step that it was given"
            )
        self._answered = number
        return number == self._handed


@dataclass(eq=False, kw_only=True, slots=True)
class OpenPhase:
    """A phase that a ServerApp opened."""

    study: str
    sites: frozenset[str]
    report: Report
    seats: dict[str, Seat] = field(default_factory=dict)

    def hand(self, step: PhaseStep, sites: Collection[str]) -> None:
        """Gives the step to each of `sites` that has a stream; the others are known to be gone."""
        for site in sites:
            seat = self.seats.get(site)
            if seat is not None:
                seat.hand(step)


class PhaseHub:
    """The open phases by study."""

    def __init__(self) -> None:
        self._phases: dict[str, OpenPhase] = {}

    def open(self, study: str, sites: Collection[str], report: Report) -> OpenPhase:
        """A new phase; an older one of the same study is over.

        Raises:
            CallRefused: RATE, too many at a time.
        """
        if study in self._phases:
            self.close(self._phases[study])
        if len(self._phases) >= MAX_PHASES:
            raise CallRefused(Refusal.RATE, f"expected at most {MAX_PHASES} phases at a time")
        phase = OpenPhase(study=study, sites=frozenset(sites), report=report)
        self._phases[study] = phase
        return phase

    def close(self, phase: OpenPhase) -> None:
        """Ends a phase: every stream in it hears so, and its ServerApp that all are gone.

        One whose phase a newer ServerApp took goes on with messages.
        """
        if self._phases.get(phase.study) is phase:
            del self._phases[phase.study]
        for seat in phase.seats.values():
            seat.end()
            phase.report(PhaseEvent(site=seat.site, present=False))
        phase.seats.clear()

    def join(self, study: str, site: SiteId) -> tuple[OpenPhase, Seat]:
        """The site's seat in the phase of a study; a stream that it had there before ends.

        Raises:
            CallRefused: PHASE, none is open for this site.
        """
        phase = self._phases.get(study)
        if phase is None or site not in phase.sites:
            raise CallRefused(Refusal.PHASE, f"{site}: expected an open phase of its study")
        before = phase.seats.get(site)
        if before is not None:
            before.end()
        seat = Seat(site=site)
        phase.seats[site] = seat
        phase.report(PhaseEvent(site=site, present=True))
        return phase, seat

    def leave(self, phase: OpenPhase, seat: Seat) -> None:
        """The stream is gone."""
        if phase.seats.get(seat.site) is seat:
            del phase.seats[seat.site]
            phase.report(PhaseEvent(site=seat.site, present=False))
