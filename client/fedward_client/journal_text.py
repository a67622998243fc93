"""The reports of the journal for people."""

from typing import Any


def totals_text(report: dict[str, Any]) -> str:
    """One line per direction and kind, then what left in all."""
    since = "" if report["since"] is None else f" since {report['since']}"
    lines = [
        f"Journal of {report['site']}: {report['entries']} entries, chain unbroken",
        f"Objects that came in or left{since}:",
    ]
    for row in report["totals"]:
        lines.append(
            f"  {row['direction']:<3}  {row['kind']:<12}  {row['objects']:>8,} objects  "
            f"{row['bytes']:>14,} bytes"
        )
    lines.append(f"Left in all: {report['bytes_out']:,} bytes")
    return "\n".join(lines)


def objects_text(report: dict[str, Any]) -> str:
    """One line per object: when, which way, what, how large, for which round of which study."""
    return "\n".join(_object_line(one) for one in report["objects"]) or "Nothing came in or left."


def _object_line(one: dict[str, Any]) -> str:
    study = "-" if one["study"] is None else f"{one['study'][:16]} round {one['round']}"
    run = "-" if one["run"] is None else one["run"]
    to = "-" if one["certificate_sha256"] is None else one["certificate_sha256"][:16]
    return (
        f"{one['time']}  {one['direction']:<3}  {one['kind']:<11}  {one['bytes']:>10,}  "
        f"{one['sha256']}  study {study}  run {run}  coordinator {to}"
    )


def month_text(report: dict[str, Any]) -> str:
    """What left for which study in one month, and what else the journal noted."""
    lines = [f"{report['site']}, {report['month']} (UTC)"]
    for one in report["studies"]:
        lines.append(
            f"  study {one['id']} {one['study'][:16]}: {one['rounds']} rounds, "
            f"{one['objects_out']:,} objects and {one['bytes_out']:,} bytes left"
        )
    other = report["other"]
    lines.append(
        f"  besides: {other['objects_out']:,} objects and {other['bytes_out']:,} bytes left, "
        f"{other['objects_in']:,} objects and {other['bytes_in']:,} bytes came in"
    )
    lines += [f"  {count:>6,} x {action}" for action, count in report["events"].items()]
    return "\n".join(lines)


def comparison_text(report: dict[str, Any]) -> str:
    """Whether both logs agree, and each object about which they do not."""
    lines = [f"{report['site']}: {report['matched']:,} objects stand in both logs"]
    for key, text in (
        ("left_unnoted", "left without a line in this site's journal: ask who sent it"),
        ("came_unnoted", "sent by the coordinator, not in this site's journal"),
        ("sent_not_arrived", "left this site, not in the coordinator's log"),
        ("came_from_elsewhere", "came in here, not in the coordinator's log"),
    ):
        for one in report[key]:
            lines.append(
                f"  {one['times']} x {one['kind']} {one['sha256']} ({one['bytes']:,} bytes): {text}"
            )
    if report["agree"]:
        lines.append("Both logs agree, object by object.")
    return "\n".join(lines)
