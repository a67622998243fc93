"""A sandbox of genotypes without its processes: what is written, read, counted and reported.

The sites read with htslib, the parent with its own reader of lines: both have the same people.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_client.data.site import SiteSource
from fedward_client.data_check import check_data, data_report
from fedward_client.data_check_page import report_page
from fedward_client.policy import SitePolicy
from fedward_client.settings import load_site_settings
from fedward_common.privacy.statistics import exact_sums
from fedward_common.study.statistics import statistics_releases
from fedward_server.sandbox.run import Prepared, prepare
from fedward_server.sandbox.statistics import exact_result
from tests.support.genotype_sandbox import COUNT, LEARN, inputs


def made(folder: Path, text: str) -> Prepared:
    return prepare(inputs(folder, text), out=folder / "out")


def sources(prepared: Prepared) -> dict[Any, SiteSource]:
    return {
        site.site: SiteSource(load_site_settings(site.settings_file))
        for site in prepared.layout.sites.values()
    }


def test_sites_and_parent_learn_from_the_same_numbers(tmp_path: Path) -> None:
    prepared = made(tmp_path, LEARN)

    for site, source in sources(prepared).items():
        for part, copy in (("train", prepared.copy.training), ("test", prepared.copy.held_out)):
            found = source.records(prepared.study, part=part)  # type: ignore[arg-type]
            assert found.features.tobytes() == copy[site].features.tobytes()
            assert found.labels.tobytes() == copy[site].labels.tobytes()
            assert found.patient.tolist() == copy[site].patient.tolist()
    # Ten people of five families are five units.
    whole = [c[SITE].patients for c in (prepared.copy.training, prepared.copy.held_out)]
    assert sum(whole) == sum(
        len(c[SITE].labels) for c in (prepared.copy.training, prepared.copy.held_out)
    ) - 5 + _absent_kin(prepared)


SITE: Any = "north"


def _absent_kin(prepared: Prepared) -> int:
    """Families of which too few genotypes of one member, or of all, were there."""
    source = sources(prepared)[SITE]
    found = [one.unit for one in source.genotypes.people(prepared.study)]
    families = [unit for unit in found if unit.startswith("family")]
    return 5 - (len(families) - len(set(families)))


def test_the_site_s_own_policy_takes_the_study_of_families(tmp_path: Path) -> None:
    prepared = made(tmp_path, LEARN)
    settings = load_site_settings(prepared.layout.sites[SITE].settings_file)

    assert SitePolicy.of(settings).family_keys == {"family"}
    assert settings.genotypes[0].build == "GRCh37"
    assert {path.name for path in settings.data_files} == {"genotypes.vcf.gz", "patients.csv"}


def test_a_data_report_counts_people_and_names_how_loci_were_found(tmp_path: Path) -> None:
    prepared = made(tmp_path, LEARN)
    source = sources(prepared)[SITE]

    found = check_data(prepared.study, source)
    report = data_report(prepared.study, SITE, found, min_cell_size=5)

    assert found.people == 40
    assert found.cohort + sum(found.absent.values()) == 40
    assert [one["name"] for one in report["features"]] == ["genotypes", "loci as in the panel"]
    assert "loci as in the panel" in report_page(report)
    assert "s17" not in json.dumps(report)


@pytest.mark.parametrize("secret", [False, True])
def test_the_releases_of_a_study_of_genotypes_are_the_same_sums_at_sites_and_parent(
    tmp_path: Path, secret: bool
) -> None:
    secure = "secure_sum = true\n" if secret else ""
    prepared = made(tmp_path, secure + COUNT)
    study = prepared.study

    for site, source in sources(prepared).items():
        for release in statistics_releases(study):
            np.testing.assert_array_equal(
                exact_sums(release, study.data, source.rows(study)),
                exact_sums(release, study.data, prepared.copy.tables[site]),
            )
    result = exact_result(study, prepared.copy.tables)
    assert [len(r["variants"]) for r in result["releases"]] == [1, 1, 4]
