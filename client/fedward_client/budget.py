"""What this hospital's patients have been promised and charged, from the ledger alone.

Every epsilon stands beside its delta and the name of its accountant. The figure of a study is that
of its reservation (T_max), also when it stopped early: where a study stops may depend on data, and
composition does not cover that (rules 4). What was really used up stands beside it.
"""

import math
from typing import Any, Final

from fedward_client.adapters.sqlite_ledger import ledger_exists, read_accounts
from fedward_client.settings import SiteSettings
from fedward_common.privacy.accounting import epsilon_admission, epsilon_pld
from fedward_common.privacy.ledger import Head, StudyAccount

FORMAT: Final = "fedward-budget/1"


def budget_report(settings: SiteSettings) -> dict[str, Any]:
    """The site's budget as a JSON value; reads and verifies the ledger, changes nothing.

    Keys: `site`, `population`, `studies` (one object per admitted study), `total`, `ledger`.
    Before the first study the list is empty.

    Raises:
        LedgerError: the ledger is damaged, rolled back or missing beside its mark.
    """
    head = Head()
    accounts: tuple[StudyAccount, ...] = ()
    if ledger_exists(settings.ledger_path):
        head, accounts = read_accounts(settings.ledger_path)
    return {
        "format": FORMAT,
        "site": settings.site,
        "population": f"every person of {settings.site}, in any source, study or federation",
        "studies": [_study(account) for account in accounts],
        "total": _total(accounts, settings=settings),
        "ledger": {"rows": head.seq, "head_sha256": head.sha256},
    }


def budget_text(report: dict[str, Any]) -> str:
    """`report` for people: a line per figure, each epsilon with its delta."""
    lines = [f"Privacy budget of {report['site']} ({report['population']})"]
    for study in report["studies"]:
        at = f"at delta {study['delta']:g} per {study['unit']}"
        lines += [
            "",
            f"{study['id']}  {study['digest']}",
            f"  promised (all {study['rounds_reserved']} rounds, "
            f"{study['releases_reserved']} releases): "
            f"epsilon {_number(study['epsilon_pld'])} (PLD), "
            f"{_number(study['epsilon_admission'])} (admission) {at}",
            f"  used up ({study['rounds_charged']} rounds, {study['releases_charged']} releases): "
            f"epsilon {_number(study['epsilon_used_pld'])} (PLD), "
            f"{_number(study['epsilon_used_admission'])} (admission) {at}",
            f"  the study declares epsilon {study['epsilon_declared']:g} ({study['epsilon_is']})",
        ]
    total = report["total"]
    lines += [
        "",
        f"All studies together: epsilon {_number(total['epsilon_admission'])} (admission) at delta "
        f"{total['delta']:g}; limit {total['max_epsilon']:g}, left {_number(total['left'])}",
        "Nothing is refunded. A patient who is also at another hospital of a study is covered only "
        "up to what both hospitals charge together.",
    ]
    return "\n".join(lines)


def _study(account: StudyAccount) -> dict[str, Any]:
    reserved, used = account.reservation, account.used_event
    delta = reserved.delta
    return {
        "digest": reserved.study,
        "id": reserved.study_id,
        "unit": reserved.unit,
        "delta": delta,
        "epsilon_pld": _finite(epsilon_pld(reserved.event, delta=delta)),
        "epsilon_admission": _finite(epsilon_admission([reserved.event], delta=delta)),
        "epsilon_used_pld": 0.0 if used is None else _finite(epsilon_pld(used, delta=delta)),
        "epsilon_used_admission": (
            0.0 if used is None else _finite(epsilon_admission([used], delta=delta))
        ),
        "epsilon_declared": reserved.epsilon,
        "epsilon_is": reserved.epsilon_is,
        "rounds_reserved": reserved.rounds,
        "rounds_charged": account.charged("round"),
        "releases_reserved": reserved.releases,
        "releases_charged": account.charged("release"),
        "reserved_at": account.reserved_at,
    }


def _total(accounts: tuple[StudyAccount, ...], *, settings: SiteSettings) -> dict[str, Any]:
    # Studies are chosen after seeing earlier results, so only the filter's figure holds for their
    # sum; there is no PLD total.
    rules = settings.policy
    reserved = [account.reservation.event for account in accounts]
    used = [event for account in accounts if (event := account.used_event) is not None]
    total = epsilon_admission(reserved, delta=rules.delta)
    return {
        "delta": rules.delta,
        "epsilon_admission": _finite(total),
        "epsilon_used_admission": _finite(epsilon_admission(used, delta=rules.delta)),
        "max_epsilon": rules.max_epsilon_total,
        "left": max(0.0, rules.max_epsilon_total - total),
    }


def _finite(epsilon: float) -> float | None:
    """JSON has no infinity: null means that no finite epsilon is known."""
    return epsilon if math.isfinite(epsilon) else None


def _number(epsilon: float | None) -> str:
    return "unbounded" if epsilon is None else f"{epsilon:.3f}"
