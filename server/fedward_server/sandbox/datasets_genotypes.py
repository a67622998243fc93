"""45 forensic SNPs of the 1000 Genomes Project, dealt to five hospitals as VCF files."""

import csv
import gzip
from pathlib import Path
from typing import Final

from fedward_common.errors import DataError
from fedward_common.ids import SiteId
from fedward_server.sandbox.genotypes import GENOTYPES, PEOPLE

ANCESTRY_SITES: Final = tuple(map(SiteId, ("north", "east", "south", "west", "centre")))
SNPS: Final = "kg_2504samples_45snps.vcf.gz"
PANEL: Final = "panel_2504.tsv"
ORIGINS: Final = ("AFR", "AMR", "EAS", "EUR", "SAS")
_HEADER: Final = (
    "##fileformat=VCFv4.2",
    "##contig=<ID=1,length=249250621>",
    '##FILTER=<ID=PASS,Description="All filters passed">',
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
)
"""The file as it was published has no header at all, so that htslib does not take it for a VCF."""


def deal_ancestry(source: Path, folder: Path) -> dict[SiteId, Path]:
    """One VCF with its table of people for each of five hospitals, from 2,504 real genomes.

    Whole populations are dealt: of each continental group its first population by name goes to the
    first hospital, the second to the second, and so on round again, so that no population is at two
    hospitals and every hospital has others. Who is held out follows from the study's hash.

    Raises:
        DataError: `source` does not hold the two files.
    """
    try:
        with (source / PANEL).open(encoding="utf-8", newline="") as file:
            people = list(csv.DictReader(file, delimiter="\t"))
        with gzip.open(source / SNPS, "rt", encoding="utf-8") as text:
            lines = [line.rstrip("\n").split("\t") for line in text if not line.startswith("##")]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"ancestry: expected {PANEL} and {SNPS} in the data folder") from error
    names, records = lines[0], lines[1:]
    return {
        site: _write(folder / site, own, names=names, records=records)
        for site, own in _dealt(people).items()
    }


def _dealt(people: list[dict[str, str]]) -> dict[SiteId, list[dict[str, str]]]:
    where: dict[str, SiteId] = {}
    for origin in ORIGINS:
        populations = sorted({one["pop"] for one in people if one["super_pop"] == origin})
        for number, population in enumerate(populations):
            where[population] = ANCESTRY_SITES[number % len(ANCESTRY_SITES)]
    dealt: dict[SiteId, list[dict[str, str]]] = {site: [] for site in ANCESTRY_SITES}
    for one in people:
        dealt[where[one["pop"]]].append(one)
    return dealt


def _write(
    folder: Path, people: list[dict[str, str]], *, names: list[str], records: list[list[str]]
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    places = {name: number for number, name in enumerate(names)}
    samples = [one["sample"] for one in people if one["sample"] in places]
    fixed = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT"]
    text = [*_HEADER, "\t".join([*fixed, *samples])]
    for record in records:
        found = dict(zip(names, record, strict=True))
        left = [found["#CHROM"], *(found[n] for n in ("POS", "ID", "REF", "ALT")), ".", "PASS", "."]
        text.append("\t".join([*left, "GT", *(record[places[name]] for name in samples)]))
    with gzip.GzipFile(folder / GENOTYPES, "wb", mtime=0) as file:
        file.write("\n".join(text).encode() + b"\n")
    _write_people(folder / PEOPLE, [one for one in people if one["sample"] in places])
    return folder / GENOTYPES


def _write_people(path: Path, people: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sample", "patient_id", "origin"])
        writer.writerows([one["sample"], f"p-{one['sample']}", one["super_pop"]] for one in people)
