"""What left a site, summed from its own hash-chained journal."""

from collections import defaultdict
from typing import Any

from fedward_client.settings import SiteSettings
from fedward_common.log.events import read_events, verify

OBJECT = "object"


def journal_report(settings: SiteSettings) -> dict[str, Any]:
    """Objects and bytes by direction and kind, after the chain was verified from its first line.

    Raises:
        LedgerError: a line of the journal was changed or removed.
    """
    summary = verify(settings.audit_path)
    totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for event in read_events(settings.audit_path):
        if event.action == OBJECT:
            total = totals[event.fields["direction"], event.fields["kind"]]
            total[0] += 1
            total[1] += event.fields["bytes"]
    return {
        "site": settings.site,
        "entries": summary.entries,
        "head_sha256": summary.head_sha256,
        "bytes_out": sum(size for (way, _), (_, size) in totals.items() if way == "out"),
        "totals": [
            {"direction": way, "kind": kind, "objects": count, "bytes": size}
            for (way, kind), (count, size) in sorted(totals.items())
        ],
    }
