"""Whether what a federation wrote down agrees: ledgers, journals, the run's log, the edge's log."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedward_common.log.events import Event, read_events, verify


def agreement(
    sites: Mapping[Any, Path],
    log: Path,
    charged: Mapping[Any, int],
    *,
    study: str | None = None,
    edge_log: Path | None = None,
) -> dict[str, Any]:
    """What ledgers, journals and logs say, and whether it is the same.

    `sites` are their folders, `charged` the rounds that each one's ledger has.

    A guard that died between ledger and journal finds the charge again: `repeated` in its journal.
    `study` is the digest of the run's study where the sites have others too. With the edge's log,
    `nothing_unwritten` are the objects of a site that passed the edge and not the site's journal.
    """
    asked: dict[str, set[int]] = {site: set() for site in sites}
    answered: dict[str, set[int]] = {site: set() for site in sites}
    committed: list[int] = []
    for event in read_events(log):
        fields = event.fields
        if event.action == "round.opened" and fields["kind"] == "train":
            for site in fields["sites"]:
                asked[site].add(fields["round"])
        elif event.action == "site.replied" and fields["kind"] == "train":
            answered[fields["site"]].add(fields["round"])
        elif event.action == "round.committed":
            committed.append(fields["round"])
    journals = {
        site: _journal(folder / "state" / "audit" / "site.jsonl") for site, folder in sites.items()
    }
    rounds = {site: _charges(events, study) for site, events in journals.items()}
    return {
        "asked_rounds": {site: len(found) for site, found in asked.items()},
        "charged_rounds": dict(charged),
        "journal_rounds": {site: len(set(found)) for site, found in rounds.items()},
        "committed_once": len(committed) == len(set(committed)),
        "ledger_equals_journal": all(
            charged[site] == len(set(found)) for site, found in rounds.items()
        ),
        "charged_once": all(
            count == 1
            for events in journals.values()
            for count in Counter(_charges(events, study, anew=True)).values()
        ),
        "no_charge_unasked": all(set(rounds[site]) <= asked[site] for site in asked),
        "answers_charged": all(answered[site] <= set(rounds[site]) for site in answered),
        "nothing_unwritten": [] if edge_log is None else _unwritten(edge_log, journals),
    }


def _journal(path: Path) -> list[Event]:
    verify(path)
    return list(read_events(path))


def _charges(events: list[Event], study: str | None, *, anew: bool = False) -> list[int]:
    """The rounds of training that were charged, as often as the journal has them.

    `anew`: without those of which the guard found the charge in its ledger.
    """
    return [
        event.fields["round"]
        for event in events
        if event.action == "round.charged"
        and event.fields["kind"] == "train"
        and study in (None, event.fields["study"])
        and not (anew and event.fields["repeated"])
    ]


def _unwritten(edge_log: Path, journals: dict[Any, list[Event]]) -> list[str]:
    """Objects that came to the edge and that no journal has on its way out."""
    verify(edge_log)
    out: dict[str, Counter[str]] = {
        site: Counter(
            event.fields["sha256"]
            for event in events
            if event.fields.get("direction") == "out" and event.action == "object"
        )
        for site, events in journals.items()
    }
    return [
        f"{event.fields['site']}: {event.fields['kind']} {event.fields['sha256']}"
        for event in read_events(edge_log)
        if event.action == "edge.object"
        and event.fields["direction"] == "in"
        and not out[event.fields["site"]][event.fields["sha256"]]
    ]
