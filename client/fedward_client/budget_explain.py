"""`fedward-client budget explain`: what the numbers of `budget show` are made of, in plain words.

For a privacy officer: which studies, which mechanisms, how they add up, what one more would cost,
and what no epsilon here speaks about. Everything is computed from the verified ledger.
"""

import math
from typing import Any, Final

from dp_accounting import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    PoissonSampledDpEvent,
)
from dp_accounting.dp_event import DiscreteLaplaceDpEvent

from fedward_client.adapters.sqlite_ledger import LedgerView
from fedward_client.budget import (
    budget_report,
    filter_share,
    finite,
    number_text,
    order_in_force,
    share_text,
    site_ledger,
    site_limits,
    total_after,
)
from fedward_client.settings import SiteSettings
from fedward_common.privacy.accounting import (
    divergence_at,
    epsilon_admission,
    epsilon_pld,
    filter_budget,
    filter_order,
    renyi_curve,
)
from fedward_common.privacy.ledger import Reservation
from fedward_common.privacy.ledger_values import Limits
from fedward_common.privacy.mechanism import decode_event, leaf_counts
from fedward_common.study.spec import StudySpec

FORMAT: Final = "fedward-budget-explained/1"
MOST: Final = 1000
"""More further studies than this are not counted."""

NOT_COVERED: Final = (
    "A patient of another hospital too: each hospital counts for itself, and what both charge adds "
    "up for that person.",
    "A person under two ids in this hospital's tables: each id counts as a person.",
    "What a model or a statistic teaches about a disease in general; the epsilon bounds what "
    "depends on one patient being in the data.",
    "Relatives: what a patient's data say about kin is bounded per patient, not per family.",
    "Settings and ranges that people chose after looking at these patients by other means.",
    "Models trained here by `rehearse`, and anything that leaves this hospital outside Fedward.",
    "Time and size of the encrypted messages.",
)


def explain_report(settings: SiteSettings, *, study: StudySpec | None = None) -> dict[str, Any]:
    """The explanation as a JSON value; `study` is one more that is asked about, not admitted.

    Raises:
        LedgerError: the ledger is damaged, rolled back or missing beside its mark.
        ConfigError: the study has no known accounting.
    """
    view, limits = site_ledger(settings), site_limits(settings)
    events = [account.reservation.event for account in view.accounts]
    base = budget_report(settings)
    more = None if study is None else Reservation.of(study)
    last = view.accounts[-1].reservation if view.accounts else None
    return {
        **base,
        "format": FORMAT,
        "studies": [
            {
                **facts,
                "mechanisms": _mechanisms(event),
                "share": _share(event, limits, order=order_in_force(view, limits=limits)),
            }
            for facts, event in zip(base["studies"], events, strict=True)
        ],
        "composition": {
            "filter_order": order_in_force(view, limits=limits) if events else None,
            "delta": limits.delta,
            "epsilon_admission_as_one_plan": finite(epsilon_admission(events, delta=limits.delta)),
            "epsilon_pld_as_one_plan": (
                finite(epsilon_pld(ComposedDpEvent(events), delta=limits.delta)) if events else 0.0
            ),
        },
        "one_more": None if more is None else _one_more(more, view, limits),
        "like_the_last": None if last is None else _like(last, view, limits),
        "not_covered": list(NOT_COVERED),
    }


def explain_text(report: dict[str, Any]) -> str:
    """`report` for people."""
    total, composed = report["total"], report["composition"]
    lines = [
        f"What the privacy budget of {report['site']} is made of",
        "",
        f"It is one number for {report['population']}. An epsilon bounds how much more likely any "
        "outcome",
        "can become when all records of one patient are added or removed: at most e to the epsilon "
        "times,",
        "apart from the probability delta.",
    ]
    for study in report["studies"]:
        lines += ["", f"{study['id']}  (digest {study['digest'][:12]}, {study['reserved_at']})"]
        lines += [f"  * {words}" for words in study["mechanisms"]]
        lines += [
            f"  together epsilon {number_text(study['epsilon_pld'])} by PLD and "
            f"{number_text(study['epsilon_admission'])} by RDP, at delta {study['delta']:g} per "
            f"{study['unit']};",
            f"  reserved in full at admission: {study['rounds_charged']} of "
            f"{study['rounds_reserved']} rounds and {study['releases_charged']} of "
            f"{study['releases_reserved']} releases were started;",
            f"  it takes {share_text(study['share'])} of this hospital's budget.",
        ]
    lines += ["", "How it adds up"]
    if not report["studies"]:
        lines += ["  No study was admitted yet."]
    else:
        lines += [
            f"  The limit is epsilon {total['max_epsilon']:g} at delta {total['delta']:g} over all "
            f"studies; {share_text(total['share'])} of it is reserved.",
            "  The shares above add up exactly. They are counted at one Renyi order "
            f"({composed['filter_order']:g}), fixed with the first",
            "  study: only so does the limit hold for studies that were chosen after earlier "
            "results were seen.",
            "  Had all studies been fixed beforehand as one plan, it would cost epsilon "
            f"{number_text(composed['epsilon_pld_as_one_plan'])} by PLD and "
            f"{number_text(composed['epsilon_admission_as_one_plan'])}",
            f"  by RDP, at delta {composed['delta']:g}. RDP is the coarser of the two and never "
            "below the truth; the limits use it.",
        ]
    lines += ["", *_more_lines(report), "", "What is not covered"]
    lines += [f"  * {line}" for line in report["not_covered"]]
    return "\n".join(lines)


def _more_lines(report: dict[str, Any]) -> list[str]:
    lines = ["What one more study would cost"]
    one = report["one_more"]
    if one is not None:
        verdict = "It fits." if one["fits"] else f"It does not fit: {one['why']}."
        lines += [
            f"  {one['id']}: epsilon {number_text(one['epsilon_pld'])} by PLD and "
            f"{number_text(one['epsilon_admission'])} by RDP at delta {one['delta']:g}, "
            f"{share_text(one['share'])} of the budget. {verdict}"
        ]
    like = report["like_the_last"]
    if like is not None:
        many = f"{MOST} or more" if like["times"] >= MOST else str(like["times"])
        lines += [
            f"  A study like {like['id']} takes {share_text(like['share'])} of the budget; {many} "
            "more of them fit."
        ]
    if one is None and like is None:
        lines += ["  Name a signed study to see it: `fedward-client budget explain --study FILE`."]
    return lines


def mechanism_text(event: DpEvent, *, times: int) -> str:
    """An elementary mechanism in words."""
    often = "once" if times == 1 else f"{times} times"
    match event:
        case PoissonSampledDpEvent():
            noise = event.event.noise_multiplier
            return (
                f"{often}: a sum over patients who are each drawn with probability "
                f"{event.sampling_probability:g}, plus Gaussian noise of {noise:g} times what one "
                "patient can move"
            )
        case GaussianDpEvent():
            return (
                f"{often}: sums over all patients, plus Gaussian noise of "
                f"{event.noise_multiplier:g} times what one patient can move"
            )
        case DiscreteLaplaceDpEvent():
            return (
                f"{often}: a number of patients, plus discrete Laplace noise of scale "
                f"{1 / event.noise_parameter:g}"
            )
        case LaplaceDpEvent():
            return (
                f"{often}: a sum over all patients, plus Laplace noise of "
                f"{event.noise_multiplier:g} times what one patient can move"
            )
        case _:
            return f"{often}: {type(event).__name__}"


def _mechanisms(event: DpEvent) -> list[str]:
    counts = leaf_counts([event])
    return [mechanism_text(decode_event(leaf), times=times) for leaf, times in counts.items()]


def _share(event: DpEvent, limits: Limits, *, order: float) -> float | None:
    """The share of the total budget that `event` takes at the filter's order."""
    budget = filter_budget(order=order, epsilon=limits.max_epsilon_total, delta=limits.delta)
    if budget <= 0:
        return None
    return finite(divergence_at(renyi_curve([event]), order) / budget)


def _one_more(more: Reservation, view: LedgerView, limits: Limits) -> dict[str, Any]:
    alone = epsilon_admission([more.event], delta=more.delta)
    after = total_after(view.accounts, more, limits=limits, order=view.order)
    order = view.order
    if order is None:  # the one that this study would fix
        curve = renyi_curve([*(a.reservation.event for a in view.accounts), more.event])
        order = filter_order(curve, epsilon=limits.max_epsilon_total, delta=limits.delta)
    why = ""
    if any(account.reservation.study == more.study for account in view.accounts):
        why = "it was admitted before and is in the figures above"
    elif not more.delta <= limits.delta:
        why = f"its delta is above the limit of {limits.delta:g}"
    elif not alone <= limits.max_epsilon_per_study:
        why = f"alone it is above the limit of {limits.max_epsilon_per_study:g} per study"
    elif not after <= limits.max_epsilon_total:
        why = "all studies together would be above the limit"
    return {
        "id": more.study_id,
        "digest": more.study,
        "delta": more.delta,
        "epsilon_pld": finite(epsilon_pld(more.event, delta=more.delta)),
        "epsilon_admission": finite(alone),
        "share": _share(more.event, limits, order=order),
        "fits": not why,
        "why": why,
    }


def _like(last: Reservation, view: LedgerView, limits: Limits) -> dict[str, Any]:
    order = order_in_force(view, limits=limits)
    share, taken = _share(last.event, limits, order=order), filter_share(view, limits=limits)
    times = 0
    if share is not None and math.isfinite(taken) and taken < 1:
        times = MOST if share <= 0 else min(MOST, math.floor((1 - taken) / share + 1e-9))
    return {"id": last.study_id, "share": share, "times": times}
