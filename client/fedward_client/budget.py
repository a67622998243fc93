"""What this hospital's patients have been promised and charged, from the ledger alone.

Every epsilon stands beside its delta and the name of its accountant. The figure of a study is that
of its reservation (T_max), also when it stopped early: where a study stops may depend on data, and
composition does not cover that (rules 4). What was really used up stands beside it.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

from fedward_client.adapters.sqlite_ledger import LedgerView, ledger_exists, read_ledger
from fedward_client.settings import SiteSettings
from fedward_common.privacy.accounting import (
    divergence_at,
    epsilon_admission,
    epsilon_pld,
    filter_budget,
    filter_epsilon,
    filter_order,
    renyi_curve,
)
from fedward_common.privacy.ledger import Reservation, StudyAccount
from fedward_common.privacy.ledger_values import Limits

FORMAT: Final = "fedward-budget/1"


def site_ledger(settings: SiteSettings) -> LedgerView:
    """The site's ledger, verified; an empty one before the first study. Changes nothing.

    Raises:
        LedgerError: the ledger is damaged, rolled back or missing beside its mark.
    """
    if not ledger_exists(settings.ledger_path):
        return LedgerView()
    return read_ledger(settings.ledger_path)


def budget_report(settings: SiteSettings) -> dict[str, Any]:
    """The site's budget as a JSON value; reads and verifies the ledger, changes nothing.

    Keys: `site`, `population`, `studies` (one object per admitted study), `total`, `ledger`.
    Before the first study the list is empty.

    Raises:
        LedgerError: the ledger is damaged, rolled back or missing beside its mark.
    """
    view = site_ledger(settings)
    return {
        "format": FORMAT,
        "site": settings.site,
        "population": f"every person of {settings.site}, in any source, study or federation",
        "studies": [_study(account) for account in view.accounts],
        "total": _total(view, settings=settings),
        "ledger": {"rows": view.head.seq, "head_sha256": view.head.sha256},
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
            f"epsilon {number_text(study['epsilon_pld'])} (PLD), "
            f"{number_text(study['epsilon_admission'])} (admission) {at}",
            f"  used up ({study['rounds_charged']} rounds, {study['releases_charged']} releases): "
            f"epsilon {number_text(study['epsilon_used_pld'])} (PLD), "
            f"{number_text(study['epsilon_used_admission'])} (admission) {at}",
            *_alone_lines(study),
            f"  the study declares epsilon {study['epsilon_declared']:g} ({study['epsilon_is']})",
        ]
    total = report["total"]
    if "epsilon_if_all_others_collude" in total:
        lines += [
            "",
            "If all others collude, of distributed noise only this hospital's own share protects: "
            f"epsilon {number_text(total['epsilon_if_all_others_collude'])} of "
            f"{total['max_epsilon_if_all_others_collude']:g} (admission) at delta "
            f"{total['delta']:g} over all studies.",
        ]
    lines += [
        "",
        f"All studies together: {share_text(total['share'])} of the budget of epsilon "
        f"{total['max_epsilon']:g} at delta {total['delta']:g} is reserved.",
        f"As one plan they would cost epsilon {number_text(total['epsilon_admission'])} "
        f"(admission) at delta {total['delta']:g}; `budget explain` says why the share counts.",
        "Nothing is refunded. A patient who is also at another hospital of a study is covered only "
        "up to what both hospitals charge together.",
    ]
    return "\n".join(lines)


def _alone_lines(study: dict[str, Any]) -> list[str]:
    if "epsilon_if_all_others_collude" not in study:
        return []
    alone = number_text(study["epsilon_if_all_others_collude"])
    return [f"  if all others collude: epsilon {alone} (admission) at delta {study['delta']:g}"]


def total_after(
    accounts: Sequence[StudyAccount],
    reservation: Reservation,
    *,
    limits: Limits,
    order: float | None = None,
) -> float:
    """What all studies together would come to with one more, as the ledger's own filter counts it.

    `order` is the ledger's (`LedgerView.order`); None, before the first study, means the order that
    this study would fix. The study is admitted when this is at most `max_epsilon_total` and the
    study alone is within its own limits.
    """
    events = [account.reservation.event for account in accounts]
    curve = renyi_curve([*events, reservation.event])
    if order is None:
        order = filter_order(curve, epsilon=limits.max_epsilon_total, delta=limits.delta)
    return filter_epsilon(curve, order=order, delta=limits.delta)


def filter_share(view: LedgerView, *, limits: Limits) -> float:
    """The share of the total budget that is reserved, by the ledger's filter; above 1 where a limit
    was lowered since. Shares of studies add up.
    """
    if not view.accounts:
        return 0.0
    curve = renyi_curve([account.reservation.event for account in view.accounts])
    order = order_in_force(view, limits=limits)
    budget = filter_budget(order=order, epsilon=limits.max_epsilon_total, delta=limits.delta)
    return divergence_at(curve, order) / budget if budget > 0 else math.inf


def order_in_force(view: LedgerView, *, limits: Limits) -> float:
    """The filter's order: the ledger's, or the one that it would fix now."""
    if view.order is not None:
        return view.order
    curve = renyi_curve([account.reservation.event for account in view.accounts])
    return filter_order(curve, epsilon=limits.max_epsilon_total, delta=limits.delta)


def site_limits(settings: SiteSettings) -> Limits:
    """The limits in site.toml, as the ledger enforces them."""
    rules = settings.policy
    return Limits(
        max_epsilon_per_study=rules.max_epsilon_per_study,
        max_epsilon_total=rules.max_epsilon_total,
        delta=rules.delta,
        max_epsilon_if_all_others_collude=rules.max_epsilon_if_all_others_collude,
    )


def finite(epsilon: float) -> float | None:
    """JSON has no infinity: null means that no finite epsilon is known."""
    return epsilon if math.isfinite(epsilon) else None


def number_text(epsilon: float | None) -> str:
    """An epsilon for people."""
    return "unbounded" if epsilon is None else f"{epsilon:.3f}"


def share_text(share: float | None) -> str:
    """A share of the budget for people, rounded up."""
    if share is None:
        return "more than the whole"
    return f"{math.ceil(share * 1000 - 1e-9) / 10:.1f} %"


def _study(account: StudyAccount) -> dict[str, Any]:
    reserved, used = account.reservation, account.used_event
    delta = reserved.delta
    return {
        "digest": reserved.study,
        "id": reserved.study_id,
        "unit": reserved.unit,
        "delta": delta,
        "epsilon_pld": finite(epsilon_pld(reserved.event, delta=delta)),
        "epsilon_admission": finite(epsilon_admission([reserved.event], delta=delta)),
        "epsilon_used_pld": 0.0 if used is None else finite(epsilon_pld(used, delta=delta)),
        "epsilon_used_admission": (
            0.0 if used is None else finite(epsilon_admission([used], delta=delta))
        ),
        **_alone(reserved),
        "epsilon_declared": reserved.epsilon,
        "epsilon_is": reserved.epsilon_is,
        "rounds_reserved": reserved.rounds,
        "rounds_charged": account.charged("round"),
        "releases_reserved": reserved.releases,
        "releases_charged": account.charged("release"),
        "reserved_at": account.reserved_at,
    }


def _alone(reserved: Reservation) -> dict[str, Any]:
    """What a study costs if all others collude, where that is another figure."""
    if reserved.alone is None:
        return {}
    alone = epsilon_admission([reserved.alone], delta=reserved.delta)
    return {"epsilon_if_all_others_collude": finite(alone)}


def _alone_total(view: LedgerView, *, limits: Limits) -> dict[str, Any]:
    """The total if all others collude, once a study has a share of noise only."""
    if all(account.reservation.alone is None for account in view.accounts):
        return {}
    events = [account.reservation.alone_or_event for account in view.accounts]
    return {
        "epsilon_if_all_others_collude": finite(epsilon_admission(events, delta=limits.delta)),
        "max_epsilon_if_all_others_collude": limits.colluding,
    }


def _total(view: LedgerView, *, settings: SiteSettings) -> dict[str, Any]:
    limits = site_limits(settings)
    reserved = [account.reservation.event for account in view.accounts]
    used = [event for account in view.accounts if (event := account.used_event) is not None]
    total = epsilon_admission(reserved, delta=limits.delta)
    return {
        "delta": limits.delta,
        "epsilon_admission": finite(total),
        "epsilon_used_admission": finite(epsilon_admission(used, delta=limits.delta)),
        "max_epsilon": limits.max_epsilon_total,
        **_alone_total(view, limits=limits),
        "left": max(0.0, limits.max_epsilon_total - total),
        # What the limit is enforced by; see accounting.
        "share": finite(filter_share(view, limits=limits)),
        "filter_order": view.order,
    }
