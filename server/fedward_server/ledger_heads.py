"""What the coordinator remembers of each site's budget ledger: did an older one come back?

A signed reply carries the number and the hash of the ledger's last row. A ledger only grows, so
what comes later has a higher number, and a row that was seen keeps its hash. A site that was
restored from a backup breaks one of the two, and would spend again what it had spent.

A site whose ledger went back stays out of every run until an operator says otherwise: rows that it
appends to the old copy would soon pass for a ledger that goes on. Its guard gets the newest row
that is known beside each instruction, and refuses without it before it charges anything.

Not found here: a ledger that was put back before any reply with its newer rows left the site.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from fedward_common.errors import LedgerError
from fedward_common.ids import SiteId
from fedward_common.privacy.ledger_values import Head

KEPT: Final = 1024
"""Heads that are remembered per site, the newest ones: answers that come again are never older."""

Seen = dict[int, str]
"""Row number -> hash."""


class LedgerHeads(Protocol):
    """Remembers heads (port). Several runs of one coordinator share what is remembered."""

    def newest(self) -> Mapping[SiteId, Head]:
        """The row with the highest number that each site has shown."""
        ...

    def went_back(self) -> frozenset[SiteId]:
        """The sites whose ledger went back, whatever they showed later."""
        ...

    def observe(self, site: SiteId, head: Head, *, floor: int) -> None:
        """Takes note of a head that came with a verified reply.

        `floor` is the newest number that was known when the instruction was sent.

        Raises:
            LedgerError: the site's ledger went back or is another one, now or before.
        """
        ...


def observed(seen: Seen, site: SiteId, head: Head, *, floor: int) -> Seen:
    """`seen` with `head`, after checking that both are of one ledger that only grows.

    Answers to two runs may overtake each other: only a new row below `floor` proves a way back.

    Raises:
        LedgerError: the site's ledger went back or is another one.
    """
    known = seen.get(head.seq)
    if known == head.sha256:
        return seen
    if known is not None or head.seq < floor:
        what = "another row under that number" if known is not None else f"row {floor} before"
        raise LedgerError(
            f"site {site}: expected its budget ledger to go on, found row {head.seq} after {what}: "
            "an older ledger was put back there. Ask the site to restore the newest copy; nothing "
            "of it counts until then and until `fedward-server site forget-ledger`"
        )
    return dict(sorted({**seen, head.seq: head.sha256}.items())[-KEPT:])


def newest_of(seen: Mapping[SiteId, Seen]) -> dict[SiteId, Head]:
    """The row with the highest number of each site."""
    return {
        site: Head(seq=max(rows), sha256=rows[max(rows)]) for site, rows in seen.items() if rows
    }


def require_not_back(site: SiteId, back: Collection[SiteId]) -> None:
    """Returns when the site is not among those whose ledger went back. Raises LedgerError."""
    if site in back:
        raise LedgerError(
            f"site {site}: expected an operator's word about its budget ledger, which went back "
            "once, found none. When its newest copy is there again: `fedward-server site "
            "forget-ledger`"
        )


@dataclass(kw_only=True, slots=True)
class HeadsInMemory:
    """`LedgerHeads` for the life of one run."""

    seen: dict[SiteId, Seen] = field(default_factory=dict)
    back: set[SiteId] = field(default_factory=set)

    def newest(self) -> Mapping[SiteId, Head]:
        """The row with the highest number that each site has shown."""
        return newest_of(self.seen)

    def went_back(self) -> frozenset[SiteId]:
        """The sites whose ledger went back."""
        return frozenset(self.back)

    def observe(self, site: SiteId, head: Head, *, floor: int) -> None:
        """Takes note of a head; see `LedgerHeads.observe`."""
        require_not_back(site, self.back)
        try:
            self.seen[site] = observed(self.seen.get(site, {}), site, head, floor=floor)
        except LedgerError:
            self.back.add(site)
            raise
