"""What the coordinator remembers of each site's budget ledger: did an older one come back?

A signed reply carries the number and the hash of the ledger's last row. A ledger only grows, so
what comes later has a higher number, and a row that was seen keeps its hash. A site that was
restored from a backup breaks one of the two, and would spend again what it had spent.

Not found here: a ledger that was put back before any reply with its newer rows left the site.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from fedward_common.errors import LedgerError
from fedward_common.ids import SiteId
from fedward_common.privacy.ledger import Head

KEPT: Final = 1024
"""Heads that are remembered per site, the newest ones: answers that come again are never older."""

Seen = dict[int, str]
"""Row number -> hash."""


class LedgerHeads(Protocol):
    """Remembers heads (port). Several runs of one coordinator share what is remembered."""

    def newest(self) -> Mapping[SiteId, int]:
        """The highest row number that each site has shown."""
        ...

    def observe(self, site: SiteId, head: Head, *, floor: int) -> None:
        """Takes note of a head that came with a verified reply.

        `floor` is the newest number that was known when the instruction was sent.

        Raises:
            LedgerError: the site's ledger went back or is another one.
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
            "of it counts until then"
        )
    return dict(sorted({**seen, head.seq: head.sha256}.items())[-KEPT:])


@dataclass(kw_only=True, slots=True)
class HeadsInMemory:
    """`LedgerHeads` for the life of one run."""

    seen: dict[SiteId, Seen] = field(default_factory=dict)

    def newest(self) -> Mapping[SiteId, int]:
        """The highest row number that each site has shown."""
        return {site: max(rows) for site, rows in self.seen.items() if rows}

    def observe(self, site: SiteId, head: Head, *, floor: int) -> None:
        """Takes note of a head; see `LedgerHeads.observe`."""
        self.seen[site] = observed(self.seen.get(site, {}), site, head, floor=floor)
