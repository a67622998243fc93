"""What came in and what left a site, from its own hash-chained journal; and whether the coordinator
saw the same.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fedward_client.guard.memory import OBJECT
from fedward_client.settings import SiteSettings
from fedward_common.errors import ConfigError
from fedward_common.log.events import Event, read_events, verify

EDGE_OBJECT: Final = "edge.object"
OPPOSITE: Final = {"in": "out", "out": "in"}
COMPARED: Final = frozenset(
    {"reply", "error-reply", "object", "message", "bundle", "run", "model", "step"}
)
"""Kinds that both sides write down."""
MONTH: Final = re.compile(r"\d{4}-(0[1-9]|1[0-2])")

Passed = tuple[str, str, str, int]
"""(direction at the site, kind, SHA-256, bytes)."""


def journal_report(settings: SiteSettings, *, since: datetime | None = None) -> dict[str, Any]:
    """Objects and bytes by direction and kind, after the chain was verified from its first line.

    Raises:
        LedgerError: a line of the journal was changed or removed.
    """
    summary = verify(settings.audit_path)
    totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for event in _objects(settings.audit_path, since):
        total = totals[event.fields["direction"], event.fields["kind"]]
        total[0] += 1
        total[1] += event.fields["bytes"]
    return {
        "site": settings.site,
        "entries": summary.entries,
        "head_sha256": summary.head_sha256,
        "since": None if since is None else since.isoformat(),
        "bytes_out": sum(size for (way, _), (_, size) in totals.items() if way == "out"),
        "totals": [
            {"direction": way, "kind": kind, "objects": count, "bytes": size}
            for (way, kind), (count, size) in sorted(totals.items())
        ],
    }


def journal_objects(settings: SiteSettings, *, since: datetime | None = None) -> dict[str, Any]:
    """Every object that came in or left, oldest first: one value per line of the journal.

    Study and round are those of the message that an outgoing object belongs to; run and the
    coordinator's certificate stand where they were known.

    Raises:
        LedgerError: a line of the journal was changed or removed.
    """
    names = ("direction", "kind", "study", "run", "round", "sha256", "bytes", "certificate_sha256")
    return {
        "site": settings.site,
        "since": None if since is None else since.isoformat(),
        "objects": [
            {"time": event.time, **{name: event.fields.get(name) for name in names}}
            for event in _objects(settings.audit_path, since)
        ],
    }


def journal_month(settings: SiteSettings, month: str) -> dict[str, Any]:
    """One calendar month (UTC), such as 2026-11: what left for which study, and what was refused.

    Raises:
        ConfigError: no month. LedgerError: a line of the journal was changed or removed.
    """
    if not MONTH.fullmatch(month):
        raise ConfigError(f"month: expected YYYY-MM, found {month!r}")
    studies: dict[str, dict[str, Any]] = {}
    other = {"objects_in": 0, "bytes_in": 0, "objects_out": 0, "bytes_out": 0}
    noted: Counter[str] = Counter()
    ids: dict[str, str] = {}
    for event in read_events(settings.audit_path):
        fields = event.fields
        if "study_id" in fields and "study" in fields:
            ids[fields["study"]] = fields["study_id"]
        if not event.time.startswith(month):
            continue
        if event.action != OBJECT:
            noted[event.action] += 1
            continue
        if "study" in fields:
            one = studies.setdefault(
                fields["study"], {"rounds": set(), "objects_out": 0, "bytes_out": 0}
            )
            one["rounds"].add(fields["round"])
        else:
            one = other
        one[f"objects_{fields['direction']}"] += 1
        one[f"bytes_{fields['direction']}"] += fields["bytes"]
    return {
        "site": settings.site,
        "month": month,
        "studies": [
            {"study": digest, "id": ids.get(digest, ""), **one, "rounds": len(one["rounds"])}
            for digest, one in studies.items()
        ],
        "other": other,
        "events": dict(sorted(noted.items())),
    }


def compare_logs(journal: Path, coordinator_log: Path, *, site: str) -> dict[str, Any]:
    """Whether the site's journal and the coordinator's edge log tell of the same objects.

    Both chains are verified. An object counts as the same with the same kind, digest and size; one
    that went twice must stand twice. `left_unnoted` is what must never be: the coordinator got it
    and the site's journal does not know it. The others may be a connection that broke on the way.

    Raises:
        LedgerError: a line of one of the two was changed or removed.
    """
    here = Counter(
        _passed(event, event.fields["direction"])
        for event in read_events(journal)
        if event.action == OBJECT and event.fields["kind"] in COMPARED
    )
    there = Counter(
        _passed(event, OPPOSITE[event.fields["direction"]])
        for event in read_events(coordinator_log)
        if event.action == EDGE_OBJECT
        and event.fields["site"] == site
        and event.fields["kind"] in COMPARED
    )
    missing, surplus = there - here, here - there
    report = {
        "site": site,
        "matched": (here & there).total(),
        "left_unnoted": _listed(missing, "out"),
        "came_unnoted": _listed(missing, "in"),
        "sent_not_arrived": _listed(surplus, "out"),
        "came_from_elsewhere": _listed(surplus, "in"),
    }
    return {**report, "agree": not missing and not surplus}


def parse_since(text: str) -> datetime:
    """A date or a time of ISO 8601; without a zone it is UTC.

    Raises:
        ConfigError: it is neither.
    """
    try:
        value = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"--since {text}: expected a date such as 2026-11-01 or a time, found another"
        ) from error
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def _objects(journal: Path, since: datetime | None) -> Iterator[Event]:
    for event in read_events(journal):
        if event.action == OBJECT and (
            since is None or datetime.fromisoformat(event.time) >= since
        ):
            yield event


def _passed(event: Event, direction: str) -> Passed:
    fields = event.fields
    return direction, fields["kind"], fields["sha256"], fields["bytes"]


def _listed(objects: Counter[Passed], direction: str) -> list[dict[str, Any]]:
    return [
        {"kind": kind, "sha256": sha256, "bytes": size, "times": times}
        for (way, kind, sha256, size), times in sorted(objects.items())
        if way == direction
    ]
