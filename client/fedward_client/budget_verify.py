"""`fedward-client budget verify`: everything about the budget that a site can re-check offline.

The rows are read afresh and every figure is computed from them; nothing that was stored as a figure
is believed. What an attacker who rewrites ledger, mark and journal together can do is not found
here, but by the coordinator, which keeps the heads that came with signed replies.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from fedward_client.adapters.sqlite_ledger import LedgerView
from fedward_client.budget import (
    filter_share,
    number_text,
    share_text,
    site_ledger,
    site_limits,
)
from fedward_client.settings import SiteSettings
from fedward_common.errors import BudgetExceeded, LedgerError
from fedward_common.log.events import read_events, verify
from fedward_common.privacy.accounting import epsilon_admission
from fedward_common.privacy.ledger import StudyAccount
from fedward_common.privacy.ledger_state import check_declared

FORMAT: Final = "fedward-budget-verified/1"
SAME: Final = 1e-9
"""Relative difference up to which two computations of one figure are equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One check: what was looked at, whether it holds, and what was found."""

    name: str
    holds: bool
    found: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Every check, in order."""

    site: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(finding.holds for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """0 when everything holds, otherwise the exit code of a damaged ledger."""
        return 0 if self.passed else LedgerError.exit_code

    def as_json(self) -> dict[str, Any]:
        """The checks as a JSON value."""
        return {
            "format": FORMAT,
            "site": self.site,
            "passed": self.passed,
            "checks": [asdict(finding) for finding in self.findings],
        }

    def text(self) -> str:
        """The checks for people: a line each."""
        lines = [f"{'ok  ' if f.holds else 'FAIL'}  {f.name}: {f.found}" for f in self.findings]
        verdict = "Everything holds." if self.passed else "Something does not hold: see above."
        return "\n".join([f"Privacy budget of {self.site}, re-checked", *lines, verdict])


def verify_budget(settings: SiteSettings) -> Verification:
    """What a re-check of the site's budget finds; changes nothing, asks nobody.

    1. the journal's hash chain; 2. the ledger's hash chain, schema and high-water mark; 3. every
    head that the journal noted is a row of the ledger, under the same hash; 4. every study's noise
    gives the epsilon that it declares; 5. every charge is within its study's reservation; 6. the
    figures in the journal are those that the rows give; 7. everything reserved is within the limits
    of site.toml.
    """
    return Verification(site=settings.site, findings=tuple(_findings(settings)))


def _findings(settings: SiteSettings) -> Iterator[Finding]:
    # 1.
    yield _check("journal", lambda: _journal(settings))
    # 2.
    opened: list[LedgerView] = []

    def ledger() -> str:
        opened.append(site_ledger(settings))
        return f"unbroken, {opened[0].head.seq} rows, not behind its mark"

    yield _check("ledger", ledger)
    if not opened:
        return
    view = opened[0]
    yield _check("ledger and journal", lambda: _heads(settings, view))  # 3.
    for account in view.accounts:
        name = f"study {account.reservation.study_id} ({account.reservation.study[:12]})"
        yield _check(name, lambda account=account: _study(account))  # type: ignore[misc] # 4., 5.
    yield _check("figures in the journal", lambda: _figures(settings, view))  # 6.
    yield _check("limits", lambda: _limits(settings, view))  # 7.


def _check(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, holds=True, found=look())
    except (LedgerError, BudgetExceeded) as error:
        return Finding(name=name, holds=False, found=str(error))


def _journal(settings: SiteSettings) -> str:
    summary = verify(settings.audit_path)
    return f"unbroken, {summary.entries} entries"


def _heads(settings: SiteSettings, view: LedgerView) -> str:
    noted = 0
    for event in read_events(settings.audit_path):
        if not {"ledger_seq", "head_sha256"} <= event.fields.keys():
            continue
        seq, sha256 = event.fields["ledger_seq"], event.fields["head_sha256"]
        known = view.hashes[seq - 1] if 1 <= seq <= len(view.hashes) else None
        if seq > 0 and known != sha256:
            raise LedgerError(
                f"journal entry {event.seq}: expected row {seq} of the ledger as it was noted, "
                f"found {'none' if known is None else 'another'}: an older ledger was put back"
            )
        noted += seq > 0
    return f"{noted} heads that the journal noted are rows of the ledger"


def _study(account: StudyAccount) -> str:
    reserved = account.reservation
    check_declared(reserved)
    real = epsilon_admission([reserved.event], delta=reserved.delta)
    # More charges than reservation is refused as a damaged row while the ledger is read.
    return (
        f"epsilon {number_text(real)} (admission) at delta {reserved.delta:g}, declared "
        f"{reserved.epsilon:g} ({reserved.epsilon_is}); {len(account.charges)} charges within its "
        "reservation"
    )


def _figures(settings: SiteSettings, view: LedgerView) -> str:
    computed = {
        account.reservation.study: epsilon_admission(
            [account.reservation.event], delta=account.reservation.delta
        )
        for account in view.accounts
    }
    compared = 0
    for event in read_events(settings.audit_path):
        if event.action != "study.reserved":
            continue
        epsilon = computed.get(event.fields["study"])
        if epsilon is None or abs(epsilon - event.fields["epsilon"]) > SAME * max(epsilon, 1.0):
            found = "none" if epsilon is None else f"{epsilon:.6g}"
            raise LedgerError(
                f"journal entry {event.seq}: expected the epsilon {event.fields['epsilon']:.6g} of "
                f"study {event.fields['study'][:12]} from the ledger's rows, found {found}"
            )
        compared += 1
    return f"{compared} recomputed from the rows, all equal"


def _limits(settings: SiteSettings, view: LedgerView) -> str:
    limits = site_limits(settings)
    share = filter_share(view, limits=limits)
    if not share <= 1 + SAME:
        raise BudgetExceeded(
            f"expected at most the budget of epsilon {limits.max_epsilon_total:g} at delta "
            f"{limits.delta:g} to be reserved, found more: the limit was lowered since. No study "
            "is charged until it is raised"
        )
    return (
        f"{share_text(share)} of epsilon {limits.max_epsilon_total:g} at delta {limits.delta:g} "
        "is reserved"
    )
