"""The ancestry example: whole populations at a hospital, in files that a site can read."""

import gzip
from pathlib import Path

import pytest

from fedward_client.data.vcf import read_vcf
from fedward_common.errors import DataError
from fedward_common.study.files import parse_study
from fedward_common.study.genotypes import Genotypes
from fedward_server.sandbox.datasets_genotypes import (
    ANCESTRY_SITES,
    PANEL,
    SNPS,
    deal_ancestry,
)
from fedward_server.sandbox.genotypes import read_site
from tests.support.studies import LEAD, STUDY_FILES, site_keys

POPULATIONS = {"AFR": ("ACB", "ASW"), "EUR": ("CEU", "FIN", "GBR")}


@pytest.fixture
def study_data() -> Genotypes:
    path = STUDY_FILES / "ancestry.toml"
    study = parse_study(
        path.read_text(),
        source=path.name,
        keys=site_keys(ANCESTRY_SITES),
        lead_key_sha256=LEAD,
        resolve=lambda *_: 1.6,
    )
    assert isinstance(study.data, Genotypes)
    return study.data


def published(folder: Path, data: Genotypes) -> Path:
    """The two files as they were published: without a header line, PASS in another column."""
    people = [
        (f"{pop}{n}", pop, origin)
        for origin, pops in POPULATIONS.items()
        for pop in pops
        for n in range(3)
    ]
    folder.mkdir()
    rows = "".join(f"{name}\t{pop}\t{origin}\tmale\n" for name, pop, origin in people)
    (folder / PANEL).write_text("sample\tpop\tsuper_pop\tgender\n" + rows)
    names = [name for name, _, _ in people]
    lines = ["\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "FILTER", "INFO", "FORMAT", *names])]
    lines += [
        "\t".join([one.chrom, str(one.pos), one.id, one.ref, one.alt, "PASS", ".", "GT"]
                  + ["0|1" if n % 2 else "1|1" for n in range(len(names))])
        for one in data.loci
    ]  # fmt: skip
    (folder / SNPS).write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return folder


def test_no_population_is_at_two_hospitals_and_every_file_can_be_read(
    tmp_path: Path, study_data: Genotypes
) -> None:
    files = deal_ancestry(published(tmp_path / "source", study_data), tmp_path / "out")

    found = {site: read_site(study_data, path) for site, path in files.items()}
    where = {row["sample"][:3]: site for site, (_, rows) in found.items() for row in rows}
    assert where == {"ACB": "north", "ASW": "east", "CEU": "north", "FIN": "east", "GBR": "south"}
    calls = read_vcf(files[ANCESTRY_SITES[0]], study_data)
    assert set(calls.found.values()) == {"as in the panel"}
    assert len(calls.found) == len(study_data.loci) == 45
    assert (calls.alleles == found[ANCESTRY_SITES[0]][0].alleles).all()


def test_a_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected panel_2504"):
        deal_ancestry(tmp_path, tmp_path / "out")
