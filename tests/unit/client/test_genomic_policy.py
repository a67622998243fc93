"""Genomic studies at a site: where they may go, who is one unit, and what a report says of kin."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from fedward_client.approvals import Standing
from fedward_client.policy import SitePolicy
from fedward_client.settings import PolicyRules
from fedward_common.errors import PolicyRefused
from fedward_common.privacy.disclosure import disclosure
from fedward_common.study.spec import StudySpec
from tests.support.genotype_studies import genotype_study
from tests.support.guard_site import site_values
from tests.support.multimodal import KIN as WHOLE_KIN
from tests.support.multimodal import multimodal_study
from tests.support.studies import make_dp, make_spec

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
KIN: dict[str, Any] = {"data": {"family_key": "family"}, "dp": make_dp(unit="family")}


def objections(
    study: StudySpec, *, family_keys: frozenset[str | None] = frozenset(), **rules: Any
) -> list[str]:
    """What is said against a study besides that nobody approved it."""
    policy = SitePolicy(
        rules=PolicyRules.model_validate(
            site_values(allowed_tasks=[study.task.kind], **rules)["policy"]
        ),
        source="site.toml",
        standing=Standing(site="north", approvers=()),
        family_keys=family_keys,
    )
    found: list[PolicyRefused] = list(policy.objections(study, now=NOW))
    return [
        str(one)
        for one in found
        if (one.code != "not-approved" and "genomic" in str(one)) or "families" in str(one)
    ]


@pytest.mark.parametrize(
    ("allowed", "named", "message"),
    [
        (["CN"], ["CN"], None),
        (["CH", "CN"], ["CN"], None),
        (None, ["US"], None),
        (None, [], None),
        (["CN"], ["CN", "US"], "it is genomic and goes to US, genomic_jurisdictions"),
        (["CN"], [], "does not say where its coordinator and sites are"),
        ([], ["CN"], "it is genomic and goes to CN"),
    ],
)
def test_a_genomic_study_stays_in_the_countries_that_the_site_allows(
    allowed: list[str] | None, named: list[str], message: str | None
) -> None:
    rules = {} if allowed is None else {"genomic_jurisdictions": allowed}

    found = objections(genotype_study(jurisdictions=named), **rules)

    assert len(found) == (message is not None)
    assert message is None or message in found[0]


def test_other_studies_are_not_asked_where_they_go_unless_they_say_that_they_are_genomic() -> None:
    assert objections(make_spec(), genomic_jurisdictions=["CN"]) == []
    assert objections(make_spec(genomic=True), genomic_jurisdictions=["CN"]) != []


@pytest.mark.parametrize(
    ("study", "keys", "refused"),
    [
        (genotype_study(), {None}, False),
        (genotype_study(), {"family"}, True),
        (genotype_study(**KIN), {"family"}, False),
        (genotype_study(**KIN), {None}, True),
        (genotype_study(**KIN), {"other"}, True),
        (multimodal_study(), {"family"}, True),
        (multimodal_study(**WHOLE_KIN), {"family"}, False),
        (multimodal_study(**WHOLE_KIN), {None}, True),
        (multimodal_study(**WHOLE_KIN), {"other"}, True),
        (multimodal_study(**WHOLE_KIN), set(), False),
    ],
)
def test_kin_that_a_site_knows_are_one_privacy_unit(
    study: StudySpec, keys: set[str | None], refused: bool
) -> None:
    assert bool(objections(study, family_keys=frozenset(keys))) == refused


@pytest.mark.parametrize("codes", [["US", "CN"], ["CN", "CN"], ["cn"], ["CHN"]])
def test_jurisdictions_have_one_form(codes: list[str]) -> None:
    with pytest.raises(ValidationError, match="jurisdictions"):
        genotype_study(jurisdictions=codes)


def test_new_fields_leave_the_digests_of_other_studies_alone() -> None:
    written = make_spec().model_dump(mode="json")

    assert not {"genomic", "jurisdictions"} & set(written)


def test_a_disclosure_says_what_no_epsilon_covers_of_relatives() -> None:
    per_patient = disclosure(genotype_study(jurisdictions=["CN"]))
    per_family = disclosure(genotype_study(**KIN))
    whys = {one.what: one.why for one in per_patient.uncovered}

    assert "together lose up to k times" in whys["relatives of a patient"]
    assert per_patient.study["jurisdictions"].value == ["CN"]
    assert "relatives of a patient" not in {one.what for one in per_family.uncovered}
    assert any("at another hospital" in one.why for one in per_family.uncovered)
    assert per_family.claim.adjacency.value == "add or remove all records of one family of one site"


def test_the_rules_about_genomes_and_keys_hold_for_every_modality_of_a_study() -> None:
    study = multimodal_study(jurisdictions=["US"])
    policy = SitePolicy(
        rules=PolicyRules.model_validate(site_values(allowed_tasks=["multimodal"])["policy"]),
        source="site.toml",
        standing=Standing(site="north", approvers=()),
        patient_keys=frozenset({"another"}),
    )

    abroad = objections(study, genomic_jurisdictions=["CN"])
    kin = objections(study, family_keys=frozenset({"family"}))
    keyed = [str(one) for one in policy.objections(study, now=NOW)]

    assert "it is genomic and goes to US" in abroad[0]
    assert "its families are by column (none)" in kin[0]
    assert any("it takes column patient_id for who is one patient" in one for one in keyed)
