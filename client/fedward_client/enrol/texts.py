"""What `fedward-client enrol` prints: progress on stderr, the outcome on stdout."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from fedward_client.enrol.installation import Enrolment
from fedward_common.trust.enrolment import EnrolmentRequest


def teller(*, quiet: bool) -> Callable[[str], None]:
    """Says a line of progress on stderr; with `quiet` the words of the request only."""

    def say(line: str) -> None:
        if not quiet or line.startswith(" "):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    return say


def enrolled_text(made: Enrolment, *, as_json: bool) -> str:
    """That the site is a member, and what comes next."""
    if as_json:
        return json.dumps(
            {
                "site": made.site,
                "federation": made.federation,
                "config": str(made.config),
                "not_after": made.until.isoformat(),
                "granted_by": list(made.granted_by),
            }
        )
    return (
        f"{made.site} is a member of {made.federation} until {made.until:%Y-%m-%d} (renewed by "
        f"itself), granted by {', '.join(made.granted_by)}.\n"
        f"Next: name the patients' table and the approvers in {made.config}, then run "
        f"`fedward-client doctor --config {made.config}`. Nothing is approved yet."
    )


def carried_text(request: EnrolmentRequest, file: Path, *, as_json: bool) -> str:
    """Where the request lies, and what to do with it."""
    if as_json:
        facts = {"site": request.site, "request": str(file), "words": request.fingerprint_words}
        return json.dumps(facts)
    return (
        f"The request is in {file}; it holds no secret. Carry it to the coordinator, and come back "
        "with the grant: fedward-client enrol --install GRANT"
    )
