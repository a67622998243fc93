"""The hospital's veto: each rule says no on its own, and says what, how much and where."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fedward_client.approvals import Standing
from fedward_client.policy import EthicsExpired, NotApproved, OutOfHours, Paused, SitePolicy
from fedward_client.settings import Approver, PolicyRules
from fedward_common.canonical import sha256_hex
from fedward_common.errors import PolicyRefused
from fedward_common.study.registry import DpSpec, ReleaseSpec
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import ColumnStatistics, ReleasesOnly
from tests.support.guard_site import (
    BUNDLE,
    KEYS,
    STEWARD,
    STEWARD_NAME,
    a_study,
    about,
    site_values,
    statement,
    stopping_study,
)
from tests.support.secure_federation import secure_study

SOURCE = "/etc/fedward/site.toml"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def policy(*approved: StudySpec, **changes: Any) -> SitePolicy:
    rules = PolicyRules.model_validate(site_values(**changes)["policy"])
    standing = Standing(
        site="north", approvers=[Approver(name=STEWARD_NAME, public_key=STEWARD.public_hex)]
    )
    for study in approved:
        standing.accept(standing.check(about(study, now=NOW).canonical), at=NOW)
    return SitePolicy(rules=rules, source=SOURCE, standing=standing)


def test_an_approved_study_within_every_limit_is_permitted() -> None:
    study = a_study()

    policy(study).permits(study, now=NOW)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"max_epsilon_per_study": 1.5},
            "Site policy refuses study heart: it asks for epsilon 2 per patient at delta 0.0001, "
            "the limit (max_epsilon_per_study) in /etc/fedward/site.toml is 1.5. Ask the data "
            "steward or choose another study.",
        ),
        ({"delta": 1e-5}, "its delta is 0.0001, the limit (delta)"),
        ({"min_noise": 4.0}, "its noise multiplier is 3, the least (min_noise)"),
        ({"allowed_tasks": ["survival"]}, "its task is tabular-classification, allowed_tasks"),
        (
            {"allow_evaluation": False},
            "(with allow_evaluation) in /etc/fedward/site.toml is update",
        ),
        ({"allowed_outputs": ["statistics"]}, "it sends out evaluation, allowed_outputs"),
        ({"allowed_hours": ["20:00-06:00"]}, "not one of the allowed_hours in /etc/fedward"),
        ({"paused": True}, "paused in /etc/fedward/site.toml is true"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_rule_refuses_on_its_own(changes: dict[str, Any], message: str) -> None:
    study = a_study()

    with pytest.raises(PolicyRefused) as raised:
        policy(study, **changes).permits(study, now=NOW)

    assert message in str(raised.value)


def test_a_hospital_allows_one_evaluation_unless_it_says_more() -> None:
    study = stopping_study()

    with pytest.raises(PolicyRefused, match=r"up to 3 times, the most \(max_evaluations\)"):
        policy(study).permits(study, now=NOW)
    policy(study, max_evaluations=3).permits(study, now=NOW)


def test_an_unapproved_study_is_told_its_digest() -> None:
    study = a_study()

    with pytest.raises(PolicyRefused, match=study.digest):
        policy(a_study(id="another")).permits(study, now=NOW)


def test_any_change_to_an_approved_study_needs_a_new_approval() -> None:
    study = a_study()
    changed = a_study(clip_norm=1.1)

    with pytest.raises(NotApproved, match="nobody of this site approved"):
        policy(study).permits(changed, now=NOW)


def test_without_evaluation_a_study_needs_no_permission_for_it() -> None:
    study = a_study(releases=0)

    policy(study, allow_evaluation=False).permits(study, now=NOW)


def test_two_releases_are_refused() -> None:
    study = a_study(releases=2)

    with pytest.raises(PolicyRefused, match="one release"):
        policy(study).permits(study, now=NOW)


def test_a_plan_of_an_unknown_kind_is_refused() -> None:
    study = a_study().model_copy(update={"dp": DpSpec(kind="none")})

    with pytest.raises(PolicyRefused, match="privacy plan"):
        policy(study).permits(study, now=NOW)


def test_limits_are_the_ledger_s_too() -> None:
    limits = policy().limits

    assert (limits.max_epsilon_per_study, limits.max_epsilon_total, limits.delta) == (
        3.0,
        6.0,
        2e-4,
    )


def test_only_a_listed_bundle_is_allowed() -> None:
    assert policy().allows_bundle(BUNDLE)
    assert not policy().allows_bundle("0" * 64)
    assert not policy(approved_bundles=[]).allows_bundle(BUNDLE)


def test_a_bundle_may_be_approved_by_a_person_too() -> None:
    rules = policy(approved_bundles=[])
    said = statement("bundle-approval", bundle=BUNDLE)

    rules.standing.accept(rules.standing.check(said.canonical), at=NOW)

    assert rules.allows_bundle(BUNDLE)
    assert not rules.allows_bundle(sha256_hex(b"another"))


def test_a_revoked_study_says_who_revoked_it() -> None:
    study = a_study()
    rules = policy(study)
    said = about(study, "study-revocation", now=NOW)

    rules.standing.accept(rules.standing.check(said.canonical), at=NOW)

    with pytest.raises(NotApproved, match=f"{STEWARD_NAME} revoked digest {study.digest}"):
        rules.permits(study, now=NOW)


def test_a_pause_comes_before_everything_else_and_says_by_whom() -> None:
    rules = policy()
    said = statement("pause", now=NOW)

    rules.standing.accept(rules.standing.check(said.canonical), at=NOW)

    with pytest.raises(Paused, match=f"{STEWARD_NAME} paused this site"):
        rules.permits(a_study(), now=NOW)
    with pytest.raises(Paused):
        rules.require_not_paused()


def test_what_the_settings_pause_nobody_resumes() -> None:
    rules = policy(paused=True)
    said = statement("resume", now=NOW)

    rules.standing.accept(rules.standing.check(said.canonical), at=NOW)

    with pytest.raises(Paused, match="site restarted"):
        rules.require_not_paused()


@pytest.mark.parametrize(
    ("hour", "minute", "allowed"),
    [(19, 59, False), (20, 0, True), (23, 30, True), (5, 59, True), (6, 0, False), (12, 0, False)],
)
def test_hours_over_midnight_are_those_of_the_sites_own_zone(
    hour: int, minute: int, allowed: bool
) -> None:
    """Zurich is one hour before UTC in November."""
    study = a_study()
    rules = policy(study, allowed_hours=["20:00-06:00"], time_zone="Europe/Zurich")
    now = datetime(2026, 11, 20, hour, minute, tzinfo=UTC) - timedelta(hours=1)

    found = [type(one) for one in rules.objections(study, now=now)]

    assert found == ([] if allowed else [OutOfHours])


def test_one_of_several_spans_is_enough() -> None:
    study = a_study()
    rules = policy(study, allowed_hours=["01:00-02:00", "11:00-13:00"])

    rules.permits(study, now=NOW)


@pytest.mark.parametrize(("day", "allowed"), [("2026-11-20", True), ("2026-11-19", False)])
def test_the_last_day_of_the_ethics_approval_counts_and_the_next_does_not(
    day: str, allowed: bool
) -> None:
    study = a_study().model_copy(update={"ethics_valid_until": day})
    rules = policy(study)
    late = NOW.replace(hour=23, minute=59)

    found = [type(one) for one in rules.objections(study, now=late)]

    assert found == ([] if allowed else [EthicsExpired])


def test_an_answer_of_a_kind_that_may_not_leave_is_refused() -> None:
    study = a_study()
    rules = policy(study, allow_evaluation=False)

    assert [str(one) for one in rules.objections(study, now=NOW, kind="train")] == []
    with pytest.raises(PolicyRefused, match="it sends out evaluation"):
        rules.permits(study, now=NOW, kind="evaluate")


def a_statistics_study() -> StudySpec:
    release = ColumnStatistics(
        columns=("age",), statistics=("count",), mechanism="gaussian", noise_multiplier=5.0
    )
    plan = ReleasesOnly(epsilon=1.0, delta=1e-4)
    return a_study().model_copy(update={"dp": plan, "releases": (release,)})


def test_statistics_need_their_own_yes() -> None:
    study = a_statistics_study()

    policy(study, allow_statistics=True).permits(study, now=NOW)

    with pytest.raises(PolicyRefused, match="allow_statistics"):
        policy(study).permits(study, now=NOW)


def test_the_limits_on_epsilon_hold_for_statistics() -> None:
    study = a_statistics_study()
    rules = policy(study, allow_statistics=True, max_epsilon_per_study=0.5)

    with pytest.raises(PolicyRefused, match="max_epsilon_per_study"):
        rules.permits(study, now=NOW)


def test_a_release_of_an_unknown_kind_is_refused() -> None:
    study = a_study().model_copy(update={"releases": (ReleaseSpec(kind="rows"),)})

    found = [str(one) for one in policy(study, allow_statistics=True).objections(study, now=NOW)]

    assert len(found) == 1
    assert "its release rows is none that is known here" in found[0]


def test_a_site_may_refuse_studies_that_show_its_numbers_to_the_coordinator() -> None:
    open_study, secret = a_study(), secure_study(KEYS, placement="local")

    def objections(study: StudySpec) -> list[str]:
        rules = policy(require_secure_sum=True).objections(study, now=NOW)
        return [str(one) for one in rules if "require_secure_sum" in str(one)]

    assert len(objections(open_study)) == 1
    assert objections(secret) == []


def test_semi_honest_sums_need_the_sites_own_word() -> None:
    study = secure_study(KEYS, placement="local", change={"secagg": {"mode": "semi-honest"}})

    def said(**rules: bool) -> bool:
        found = policy(**rules).objections(study, now=NOW)
        return any("allow_semi_honest" in str(one) for one in found)

    assert said()
    assert not said(allow_semi_honest=True)
