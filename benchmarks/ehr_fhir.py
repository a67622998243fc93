"""How fast FHIR R4 is read on one core, and how memory grows with the size of an export."""

import json
import lzma
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from fedward_client.data.fhir import FhirFiles

CONCEPTS: Final = ("LOINC:4548-4", "LOINC:2339-0", "LOINC:8480-6", "SNOMED:44054006")
COPIES: Final = (1, 4)


def measure(data: Path) -> dict[str, Any]:
    """MB of ndjson per CPU second, for bulk export and for bundles, and the peak of memory."""
    result: dict[str, Any] = {"concepts": list(CONCEPTS)}
    with tempfile.TemporaryDirectory() as name:
        for kind in ("bulk", "bundles"):
            for copies in COPIES:
                folder = Path(name) / f"{kind}-{copies}"
                folder.mkdir()
                _write(data, folder, copies=copies, bulk=kind == "bulk")
                command = [sys.executable, "-m", "benchmarks.ehr_fhir", str(folder)]
                runs = [
                    json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                    for _ in range(3)
                ]
                result[f"{kind} x{copies}"] = {
                    "megabytes": runs[0]["megabytes"],
                    "megabytes_per_cpu_second": sorted(r["rate"] for r in runs),
                    "growth_of_peak_mib": sorted(r["peak_mib"] for r in runs),
                    "events": runs[0]["events"],
                }
    return result


def _write(data: Path, folder: Path, *, copies: int, bulk: bool) -> None:
    """The Synthea patients, one line per resource or per bundle; copies are other people without
    what is asked for, so that only the size of the export grows.
    """
    for path in sorted((data / "sites").glob("*.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as source:
            for number, line in enumerate(source):
                for copy in range(copies):
                    text = line if copy == 0 else _other(line)
                    lines = _resources(text) if bulk else [text]
                    with (folder / f"{path.stem}-{number % 4}.ndjson").open("a") as file:
                        file.writelines(lines)


def _other(line: str) -> str:
    for concept in CONCEPTS:
        line = line.replace(f'"{concept.partition(":")[2]}"', '"0"')
    return line.replace('"Patient"', '"Basic"')


def _resources(line: str) -> list[str]:
    return [json.dumps(entry["resource"]) + "\n" for entry in json.loads(line)["entry"]]


def _child(folder: Path) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    before, start = _peak(), time.process_time()
    people = FhirFiles(folder).people(CONCEPTS)
    seconds = time.process_time() - start
    return {
        "megabytes": size,
        "rate": size / seconds,
        "peak_mib": _peak() - before,
        "events": sum(len(person.events) for person in people.values()),
    }


def _peak() -> float:
    # Of this program only; getrusage would count the parent that was forked.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    print(json.dumps(_child(Path(sys.argv[1]))))
