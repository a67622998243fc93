"""Made-up genotypes as a VCF in blocks of gzip (BGZF) with its index, and whose a sample is.

Source: SAM/BAM format specification 4.1 (BGZF); tabix index format (Li 2011).
"""

import csv
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from fedward_server.cohort.people import PANEL, Locus, Patient
from fedward_server.sandbox.genotypes import GENOTYPES, PEOPLE

BUILD: Final = "GRCh37"
FAMILY: Final = "family"
"""The column that says who is kin."""
_OF, _KIN = 10, 3
_CALLS: Final = ("0/0", "0/1", "1/1")
_LENGTHS: Final = (
    *(249250621, 243199373, 198022430, 191154276),
    *(180915260, 171115067, 159138663, 146364022),
)
"""Of chromosomes 1 to 8 of GRCh37."""
_HEADER: Final = (
    "##fileformat=VCFv4.2",
    "##source=fedward-server make-cohort: made up, no real person",
    '##FILTER=<ID=PASS,Description="All filters passed">',
    *(f"##contig=<ID={n + 1},length={length}>" for n, length in enumerate(_LENGTHS)),
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
)
_FIXED: Final = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT")
_BLOCK: Final = 60_000
"""Bytes of text in a block; a block may not become longer than 64 KiB."""
_END: Final = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_WINDOW: Final = 14
"""Bits of a window of the index: 16,384 places."""


def write_variants(folder: Path, patients: Sequence[Patient], *, families: bool = False) -> None:
    """Writes the compressed VCF, its index and the table of its samples into `folder`.

    With `families` the table says that each ten patients' first three are kin, as far as they have
    genotypes. It says no more: their genotypes are drawn as everybody's.
    """
    folder.mkdir(parents=True)
    kin = {
        one.id: f"{one.id.rpartition('-')[0]}-family-{number // _OF + 1}"
        for number, one in enumerate(patients)
        if families and number % _OF < _KIN
    }
    known = [(one.id, one.copies) for one in patients if one.copies is not None]
    samples = [f"sample-{patient}" for patient, _ in known]
    header = "".join(f"{line}\n" for line in (*_HEADER, "\t".join([*_FIXED, *samples])))
    order = sorted(range(len(PANEL)), key=lambda n: (int(PANEL[n].chrom), PANEL[n].pos))
    lines = [_line(PANEL[n], [copies[n] for _, copies in known]) for n in order]
    blocks = _Blocks()
    blocks.add(header.encode())
    places = [(PANEL[n], *blocks.add(line.encode())) for n, line in zip(order, lines, strict=True)]
    (folder / GENOTYPES).write_bytes(blocks.finished())
    index = _Blocks()
    index.add(_index(places))
    (folder / f"{GENOTYPES}.tbi").write_bytes(index.finished())
    with (folder / PEOPLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sample", "patient_id", *([FAMILY] if families else [])])
        for sample, (patient, _) in zip(samples, known, strict=True):
            writer.writerow([sample, patient, *([kin.get(patient, "")] if families else [])])


def in_units(patients: int) -> int:
    """How many privacy units so many patients are, where all who are kin have genotypes."""
    return patients - sum(max(0, min(_KIN, patients - n) - 1) for n in range(0, patients, _OF))


def _line(locus: Locus, copies: Sequence[int]) -> str:
    fixed = [locus.chrom, str(locus.pos), locus.id, locus.ref, locus.alt, ".", "PASS", ".", "GT"]
    return "\t".join([*fixed, *(_CALLS[number] for number in copies)]) + "\n"


class _Blocks:
    """Text in blocks of gzip; a place in it is (byte of its block << 16) + byte in the block."""

    def __init__(self) -> None:
        self._done = bytearray()
        self._open = bytearray()

    def add(self, text: bytes) -> tuple[int, int]:
        """The places at which `text` begins and ends."""
        begin = self._place()
        for start in range(0, len(text), _BLOCK):
            part = text[start : start + _BLOCK]
            if len(self._open) + len(part) > _BLOCK:
                self._close()
            self._open += part
        return begin, self._place()

    def finished(self) -> bytes:
        """All blocks, and the empty one that ends a file."""
        self._close()
        return bytes(self._done) + _END

    def _place(self) -> int:
        return (len(self._done) << 16) | len(self._open)

    def _close(self) -> None:
        if not self._open:
            return
        deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
        data = deflate.compress(bytes(self._open)) + deflate.flush()
        size = len(data) + 25
        self._done += struct.pack("<4BIBBHBBHH", 31, 139, 8, 4, 0, 0, 255, 6, 66, 67, 2, size)
        self._done += data + struct.pack("<II", zlib.crc32(self._open), len(self._open))
        self._open.clear()


def _index(places: Sequence[tuple[Locus, int, int]]) -> bytes:
    """The tabix index of records at these places, before compression."""
    names = list(dict.fromkeys(locus.chrom for locus, _, _ in places))
    text = b"".join(name.encode() + b"\0" for name in names)
    head = struct.pack("<4s8i", b"TBI\1", len(names), 2, 1, 2, 0, ord("#"), 0, len(text))
    return b"".join([head, text, *(part for name in names for part in _contig(name, places))])


def _contig(name: str, places: Sequence[tuple[Locus, int, int]]) -> Iterator[bytes]:
    own = [(locus, begin, end) for locus, begin, end in places if locus.chrom == name]
    bins: dict[int, list[tuple[int, int]]] = {}
    windows: dict[int, int] = {}
    for locus, begin, end in own:
        first, last = locus.pos - 1, locus.pos - 1 + len(locus.ref)
        bins.setdefault(_bin(first, last), []).append((begin, end))
        for window in range(first >> _WINDOW, ((last - 1) >> _WINDOW) + 1):
            windows.setdefault(window, begin)
    yield struct.pack("<i", len(bins))
    for number, chunks in bins.items():
        yield struct.pack("<Ii", number, len(chunks))
        for begin, end in chunks:
            yield struct.pack("<QQ", begin, end)
    yield struct.pack("<i", max(windows) + 1)
    before = 0
    for window in range(max(windows) + 1):
        before = windows.get(window, before)
        yield struct.pack("<Q", before)


def _bin(first: int, last: int) -> int:
    """The smallest bin that holds the places from `first` up to `last` (0-based, half open)."""
    last -= 1
    for level in range(5, 0, -1):
        shift = 14 + 3 * (5 - level)
        if first >> shift == last >> shift:
            return int(((1 << 3 * level) - 1) // 7 + (first >> shift))
    return 0
