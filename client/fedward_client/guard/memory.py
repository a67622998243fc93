"""What the guard knows again at its start: one pass over its own journal."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from fedward_common.log.events import Event, read_events
from fedward_common.privacy.ledger_values import Head

RECORDED = "statement.recorded"
OBJECT = "object"
UNMASKED = "secagg.unmasked"
"""A secret sum that this site opened or was about to open: once, also over restarts."""
ANSWERED = frozenset({"reply.sealed", "reply.repeated"})
"""Either says that a slot has its answer: a full disk may have kept the first out of the journal.
"""


@dataclass(kw_only=True, slots=True)
class Remembered:
    """What the journal says was done before.

    `statements` are the digests of accepted statements with the times of acceptance, oldest first;
    `unmasked` the secret sums (study, number) that were opened;
    `bytes_of_round` and `bytes_of_day` what left, by (study, round) and by UTC day.
    """

    events: int = 0
    head: Head = field(default_factory=Head)
    answered: set[str] = field(default_factory=set)
    statements: dict[str, datetime] = field(default_factory=dict)
    exclusions_sha256: str | None = None
    unmasked: set[tuple[str, int]] = field(default_factory=set)
    bytes_of_round: Counter[tuple[str, int]] = field(default_factory=Counter)
    bytes_of_day: Counter[str] = field(default_factory=Counter)

    def note(self, event: Event) -> None:
        """Adds one event of the journal."""
        fields = event.fields
        self.events += 1
        if "ledger_seq" in fields and "head_sha256" in fields:
            self.head = Head(seq=fields["ledger_seq"], sha256=fields["head_sha256"])
        if event.action in ANSWERED:
            self.answered.add(f"{fields['study']}/{fields['kind']}/{fields['round']}")
        elif event.action == RECORDED:
            self.statements[fields["sha256"]] = datetime.fromisoformat(event.time)
        elif event.action == UNMASKED:
            self.unmasked.add((fields["study"], fields["round"]))
        elif event.action == "exclusions.changed":
            self.exclusions_sha256 = fields["sha256"]
        elif event.action == OBJECT and fields["direction"] == "out":
            self.bytes_of_day[event.time[:10]] += fields["bytes"]
            if "round" in fields:
                self.bytes_of_round[fields["study"], fields["round"]] += fields["bytes"]


def remembered(journal: Path) -> Remembered:
    """What the journal at `journal` says; nothing where there is none yet.

    Raises:
        LedgerError: a line was changed, removed, added or reordered.
    """
    memory = Remembered()
    for event in read_events(journal):
        memory.note(event)
    return memory
