"""The hospital's veto: each rule says no on its own, and says what, how much and where."""

from typing import Any

import pytest

from fedward_client.policy import SitePolicy
from fedward_client.settings import PolicyRules
from fedward_common.errors import PolicyRefused
from fedward_common.study.registry import DpSpec
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import SigningKey, key_sha256
from tests.support.guard_site import BUNDLE, LEAD, a_study, site_values

SOURCE = "/etc/fedward/site.toml"


def policy(*approved: StudySpec, **changes: Any) -> SitePolicy:
    rules = PolicyRules.model_validate(site_values(*approved, **changes)["policy"])
    return SitePolicy(rules=rules, source=SOURCE)


def test_an_approved_study_within_every_limit_is_permitted() -> None:
    study = a_study()

    policy(study).permits(study)


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
        ({"allow_evaluation": False}, "allow_evaluation in /etc/fedward/site.toml is false"),
        ({"approved_studies": []}, "is not among approved_studies"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_rule_refuses_on_its_own(changes: dict[str, Any], message: str) -> None:
    study = a_study()

    with pytest.raises(PolicyRefused) as raised:
        policy(study, **changes).permits(study)

    assert message in str(raised.value)


def test_an_unapproved_study_is_told_its_digest() -> None:
    study = a_study()

    with pytest.raises(PolicyRefused, match=study.digest):
        policy(a_study(id="another")).permits(study)


def test_any_change_to_an_approved_study_needs_a_new_approval() -> None:
    study = a_study()
    changed = a_study(clip_norm=1.1)

    with pytest.raises(PolicyRefused, match="approved_studies"):
        policy(study).permits(changed)


def test_without_evaluation_a_study_needs_no_permission_for_it() -> None:
    study = a_study(releases=0)

    policy(study, allow_evaluation=False).permits(study)


def test_two_releases_are_refused() -> None:
    study = a_study(releases=2)

    with pytest.raises(PolicyRefused, match="one release"):
        policy(study).permits(study)


def test_automatic_approval_covers_trusted_leads_only() -> None:
    stranger = SigningKey.generate()
    rules = {"auto_approve": True, "trusted_leads": [key_sha256(LEAD.public_hex)]}

    policy(**rules).permits(a_study())

    with pytest.raises(PolicyRefused, match="trusted_leads"):
        policy(**rules).permits(a_study(lead=stranger))


def test_a_plan_of_an_unknown_kind_is_refused() -> None:
    study = a_study().model_copy(update={"dp": DpSpec(kind="none")})

    with pytest.raises(PolicyRefused, match="privacy plan"):
        policy(study).permits(study)


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
