"""How fast images are indexed and decoded, and whether memory grows: `python -m benchmarks.dicom`.

Both sides of the decoding figure read the same files in the same run, alternately; the real files
of ../shared/data/dicom_test that the index takes. Indexing runs over copies of them with UIDs of
their own, headers only, twice, in a process of its own whose peak memory is read.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import generate_uid

from fedward_client.data.dicom.header import open_object, read_header
from fedward_client.data.dicom.index import ImageIndex
from fedward_client.data.dicom.pixels import load_picture
from fedward_client.data.dicom.quiet import without_words
from fedward_client.data.dicom.reasons import BadObject
from fedward_client.data.dicom.scan import index_folder

DATA = Path(__file__).parents[2] / "shared" / "data" / "dicom_test"


def usable(root: Path) -> list[Path]:
    """The files that the index would take by themselves."""
    found = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        try:
            read_header(path)
        except BadObject:
            continue
        found.append(path)
    return found


def decoding(files: list[Path], repeats: int) -> dict[str, object]:
    """Our loader beside pydicom's own pixel_array: best of `repeats` per file, summed."""
    theirs, ours = [], []
    with without_words():
        for path in files:
            one: list[list[float]] = [[], []]
            for _ in range(repeats):
                start = time.perf_counter()
                with open_object(path) as file:
                    _ = dcmread(file).pixel_array
                one[0].append(time.perf_counter() - start)
                start = time.perf_counter()
                load_picture(path)
                one[1].append(time.perf_counter() - start)
            theirs.append(min(one[0]))
            ours.append(min(one[1]))
    ratios = sorted(a / b for a, b in zip(theirs, ours, strict=True))
    return {
        "files": len(files),
        "pydicom_seconds": sum(theirs),
        "fedward_seconds": sum(ours),
        "speed_over_all_files": sum(theirs) / sum(ours),
        "speed_median_file": statistics.median(ratios),
        "speed_worst_file": ratios[0],
    }


def copies(files: list[Path], folder: Path, count: int) -> None:
    """`count` files, the real ones in turn, each with UIDs of its own."""
    with without_words():
        for number in range(count):
            source = files[number % len(files)]
            with open_object(source) as file:
                dataset = dcmread(file)
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            dataset.SeriesInstanceUID = generate_uid()
            dataset.StudyInstanceUID = generate_uid()
            target = folder / f"{number // 100:03d}" / f"{number:05d}.dcm"
            target.parent.mkdir(parents=True, exist_ok=True)
            dataset.save_as(target)


def _index(folder: Path, out: "multiprocessing.Queue[dict[str, object]]") -> None:
    start = time.perf_counter()
    with ImageIndex(folder.parent / f"{folder.name}.sqlite") as index:
        report = index_folder(folder, index)
        first = time.perf_counter() - start
        again = index_folder(folder, index)
    second = time.perf_counter() - start - first
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    out.put(
        {
            "files": report.files,
            "images": report.images,
            "files_per_second": report.files / first,
            "unchanged_files_per_second": again.unchanged / second,
            "peak_mib": peak,
        }
    )


def indexing(files: list[Path], counts: list[int], folder: Path) -> list[dict[str, object]]:
    """One figure per size of the set."""
    context = multiprocessing.get_context("spawn")
    figures = []
    for count in counts:
        copies(files, folder / str(count), count)
        out: multiprocessing.Queue[dict[str, object]] = context.Queue()
        child = context.Process(target=_index, args=(folder / str(count), out))
        child.start()
        figures.append(out.get(timeout=600))
        child.join()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="+", default=[300, 3000])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    files = usable(arguments.data)
    small = [path for path in files if path.stat().st_size < 150_000]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        result = {
            "decode": decoding(files, arguments.repeats),
            "index": indexing(small, arguments.counts, Path(folder)),
        }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
