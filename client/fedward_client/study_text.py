"""A study for people who decide about it: the report of `studies` in plain language.

Whoever wrote the study wrote its texts: none of their signs moves the cursor or begins a line, so
that no text of a study can stand where this module says what it costs or whose keys it names.
"""

from collections.abc import Iterator
from typing import Any

from fedward_client.budget import number_text, share_text


def list_text(studies: list[dict[str, Any]]) -> str:
    """One line per study; what waits for somebody is said first."""
    if not studies:
        return "No study is approved, and none was asked for."
    lines = []
    for study in sorted(_plain(studies), key=lambda one: one["status"] != "waiting"):
        who = "" if study["by"] is None else f" by {study['by']} at {study['at']}"
        lines.append(f"{study['digest'][:16]}  {study['status']:<9}{who}  {study['id']}")
        if study["title"]:
            lines.append(f"                  {study['title']}")
    return "\n".join(lines)


def study_text(report: dict[str, Any]) -> str:
    """`report` as a page: what is done, what is read, what leaves, what it costs, who else."""
    return "\n".join(_lines(_plain(report)))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    yield f"{report['title']} ({report['id']})"
    yield f"digest  {report['digest']}"
    yield f"        {report['digest_words']}"
    yield f"status  {_status(report)}"
    yield ""
    yield from _doing(report)
    yield ""
    yield "Read at this site, and nothing else:"
    width = max((len(field["name"]) for field in report["fields"]), default=0)
    for field in report["fields"]:
        yield f"  {field['name']:<{width}}  {field['use']}"
    yield ""
    yield "Leaves this site:"
    for one in report["leaves"]:
        size = f", {one['bytes_each']:,} bytes each" if "bytes_each" in one else ""
        yield f"  {one['times']} x {one['what']}{size}"
    yield "  and, where something is refused, one word of a fixed list. No record, no exact count."
    yield ""
    yield from _privacy(report["privacy"])
    yield ""
    yield "Who takes part. Read the words to each other by telephone before anybody approves:"
    width = max(len(site["id"]) for site in report["sites"])
    for site in report["sites"]:
        ours = "  (this hospital)" if site["us"] else ""
        size = f"about {site['patients']} patients"
        yield f"  {site['id']:<{width}}  {size}  {site['key_words']}{ours}"
    yield f"  {'study lead':<{width}}  {report['lead_key_words']}"
    yield ""
    if report["objections"]:
        yield "This site's policy says no:"
        yield from (f"  {one}" for one in report["objections"])
    else:
        yield "This site's policy allows it."


def _status(report: dict[str, Any]) -> str:
    if report["status"] == "waiting":
        return "nobody of this site approved it"
    return f"{report['status']} by {report['by']} at {report['at']}"


def _doing(report: dict[str, Any]) -> Iterator[str]:
    if report["model"] is None:
        yield f"Computes statistics ({report['task']}); nothing is trained."
    else:
        yield (
            f"Trains a model ({report['task']}, {report['model']}) in {report['rounds']} rounds of "
            f"{report['local_steps']} steps; the sites' updates are joined by "
            f"{report['aggregation']}."
        )
    if report.get("start_weights"):
        yield (
            f"It begins with weights learned elsewhere (SHA-256 {report['start_weights']}); the "
            "data that they were learned from are no part of this study's epsilon."
        )
    if report.get("kept"):
        yield f"Between rounds, {report['kept']}."
    if report["plugin"] is not None:
        yield plugin_text(report["plugin"])
    yield (
        f"A round waits at most {report['deadline_seconds']:g} s and counts with at least "
        f"{report['quorum']} sites."
    )
    if report["ethics_valid_until"] is None:
        yield "The study names no end of its ethics approval."
    else:
        yield f"Its ethics approval ends with {report['ethics_valid_until']} (UTC)."


def _privacy(privacy: dict[str, Any]) -> Iterator[str]:
    unit, delta = privacy["unit"], privacy["delta"]
    yield f"What it costs one {unit} of this hospital, whole study, at delta {delta:g}:"
    yield (
        f"  epsilon {number_text(privacy['epsilon_admission'])} (admission), "
        f"{number_text(privacy['epsilon_pld'])} (PLD); it declares "
        f"{privacy['epsilon_declared']:g} ({privacy['epsilon_is']})"
    )
    noise = privacy.get("distributed_noise")
    if noise is not None:
        yield (
            f"  The noise is distributed over {noise['sites']} hospitals. That epsilon holds "
            f"against the coordinator and {noise['colluding_sites_borne']} of them, with up to "
            f"{noise['dropouts_borne']} lost. If ALL others collude, only this hospital's share "
            f"protects: epsilon {number_text(noise['epsilon_if_all_others_collude'])} (admission)."
        )
    with_it = "has reserved that" if privacy["reserved_already"] else "would reserve that at once"
    yield f"  It {with_it}, also if it ends early. Nothing is refunded."
    yield (
        f"  With it {share_text(privacy['share_afterwards'])} of this hospital's budget (epsilon "
        f"{privacy['max_epsilon_total']:g} at delta {privacy['total_delta']:g}) is reserved; as "
        f"one plan all its studies would cost epsilon {number_text(privacy['total_afterwards'])} "
        "(admission)."
    )
    yield (
        f"  A {unit} of two hospitals of the study is covered only up to what both charge together."
    )


def plugin_text(report: dict[str, Any]) -> str:
    """What a plugin is, and what its approval means."""
    state = "approved" if report["approved"] else "NOT approved"
    return (
        f"The model {report['model']} is a plugin, {state} here: {report['package']} "
        f"{report['version']}, files {report['sha256']}.\n"
        "Its code runs in the worker, with this hospital's patients: it is trusted with their data."
    )


def diff_text(diff: dict[str, Any]) -> str:
    """The changes, one below the other."""
    diff = _plain(diff)
    lines = [f"{diff['id']}: {diff['before'][:16]} -> {diff['after'][:16]}"]
    for change in diff["changes"]:
        lines.append(f"  {change['field']}")
        lines.append(f"    before  {_value(change['before'])}")
        lines.append(f"    after   {_value(change['after'])}")
    if not diff["changes"]:
        lines.append("  nothing but the signature changed")
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """`value` with every text in it as one printable line."""
    if isinstance(value, dict):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):
        return "".join(sign if sign.isprintable() else " " for sign in value)
    return value


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
