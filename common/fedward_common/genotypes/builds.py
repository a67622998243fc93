"""Which reference build positions are of, told by the lengths of chromosomes.

Source: GRC assembly reports of GRCh37 and GRCh38 (primary assembly; patches leave lengths alone).
"""

from collections.abc import Mapping
from typing import Final

from fedward_common.errors import DataError
from fedward_common.genotypes.alignment import plain_chrom
from fedward_common.study.genotypes import Build

LENGTHS: Final[Mapping[Build, Mapping[str, int]]] = {
    "GRCh37": {
        "1": 249250621,
        "2": 243199373,
        "3": 198022430,
        "4": 191154276,
        "5": 180915260,
        "6": 171115067,
        "7": 159138663,
        "8": 146364022,
        "9": 141213431,
        "10": 135534747,
        "11": 135006516,
        "12": 133851895,
        "13": 115169878,
        "14": 107349540,
        "15": 102531392,
        "16": 90354753,
        "17": 81195210,
        "18": 78077248,
        "19": 59128983,
        "20": 63025520,
        "21": 48129895,
        "22": 51304566,
    },
    "GRCh38": {
        "1": 248956422,
        "2": 242193529,
        "3": 198295559,
        "4": 190214555,
        "5": 181538259,
        "6": 170805979,
        "7": 159345973,
        "8": 145138636,
        "9": 138394717,
        "10": 133797422,
        "11": 135086622,
        "12": 133275309,
        "13": 114364328,
        "14": 107043718,
        "15": 101991189,
        "16": 90338345,
        "17": 83257441,
        "18": 80373285,
        "19": 58617616,
        "20": 64444167,
        "21": 46709983,
        "22": 50818468,
    },
}


def check_lengths(build: Build, lengths: Mapping[str, int]) -> None:
    """Returns unless a contig has another length; 0 and -1 stand for a header that says none.

    Raises:
        DataError: names the builds.
    """
    for name, length in lengths.items():
        expected = LENGTHS[build].get(plain_chrom(name))
        if length <= 0 or expected is None or length == expected:
            continue
        other = next((b for b in LENGTHS if LENGTHS[b].get(plain_chrom(name)) == length), None)
        raise DataError(
            f"genotypes: expected positions of {build}, as the study says, found contigs of "
            f"{other or 'another length'}; lift the file over, or ask for a study of its build"
        )
