"""Every benchmark of genomes, omics and whole patients, one after the other.

    python -m benchmarks.genomics --shared ../shared/data --out runs [--quick] [--plink2 PROGRAM]

Each is a program of its own and writes its own file; one that fails is named at the end and stops
no other. `--quick`: the least of each, to see that it runs; its numbers are no figures (rules 25).
Two read what scikit-survival (GPL) and scanpy ship, neither a part of Fedward: fetched by
`pip download --no-deps --dest FOLDER scikit-survival scanpy` and named by `--wheels FOLDER`;
without them they say so and are skipped. plink2 is another oracle: without it nothing is compared.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """A benchmark: its module and arguments, its data set, and what is less of it."""

    name: str
    module: str
    data: str | None = None
    """None: what another package ships, in `--wheels` or installed."""
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    takes_plink2: bool = False


BENCHES: Final = (
    Bench(
        name="variants",
        module="genomics_variants",
        data="kg_eur_chr20",
        quick=("--quick",),
        takes_plink2=True,
    ),
    Bench(
        name="splice",
        module="genomics_omics",
        data="splice_junction",
        arguments=("splice",),
        quick=("--only", "logistic", "--seeds", "1", "--draws", "1"),
    ),
    Bench(
        name="tox21",
        module="genomics_omics",
        data="moleculenet",
        arguments=("tox21",),
        quick=("--only", "fingerprint", "--seeds", "1", "--draws", "0"),
    ),
    Bench(
        name="tcga",
        module="genomics_tcga",
        data="tcga_multiomics",
        quick=("--cancer", "luad", "--draws", "1", "--only", "clinical and few"),
    ),
    Bench(
        name="tcga-crossed",
        module="genomics_crossed",
        data="tcga_multiomics",
        quick=("--quick",),
    ),
    Bench(
        name="autoencoder",
        module="genomics_autoencoder",
        data="tcga_multiomics",
        quick=("--cancer", "luad", "--folds", "1", "--no-noise"),
    ),
    Bench(
        name="synthetic",
        module="synthetic",
        data="fed_heart_disease",
        quick=("--draws", "1", "--only", "gan, epsilon 8"),
    ),
    Bench(
        name="synthetic-images",
        module="synthetic_images",
        data="pneumoniamnist",
        quick=("--runs", "1"),
    ),
    Bench(
        name="breast-genes",
        module="genomics_breast",
        quick=("--runs", "1", "--only", "clinical"),
    ),
    Bench(
        name="cells",
        module="genomics_cells",
        quick=("--seeds", "1", "--draws", "0"),
    ),
    Bench(
        name="multimodal-hannover",
        module="multimodal",
        data="covid_cxr",
        arguments=("hannover",),
        quick=("--quick",),
    ),
    Bench(
        name="multimodal-tcga",
        module="multimodal",
        data="tcga_multiomics",
        arguments=("tcga",),
        quick=("--quick",),
    ),
    Bench(
        name="multimodal-hazards",
        module="multimodal_hazards",
        data="tcga_multiomics",
        quick=("--cancer", "luad", "--runs", "1", "--epsilon-8", "1", "--quick"),
    ),
)


def command(
    bench: Bench,
    *,
    shared: Path,
    out: Path,
    quick: bool,
    plink2: str | None,
    wheels: Path | None = None,
) -> list[str]:
    """The command line of one benchmark."""
    line = [sys.executable, "-m", f"benchmarks.{bench.module}", *bench.arguments]
    if bench.data is not None:
        line += ["--data", str(shared / bench.data)]
    elif wheels is not None:
        line += ["--wheels", str(wheels)]
    if bench.takes_plink2 and plink2:
        line += ["--plink2", plink2]
    suffix = "-quick" if quick else ""
    line += ["--out", str(out / f"bench-genomics-{bench.name}{suffix}.json")]
    return line + (list(bench.quick) if quick else [])


def run_all(
    lines: Sequence[tuple[str, list[str]]], *, run: Callable[[list[str]], int]
) -> list[str]:
    """The names of the benchmarks that failed; every one is run."""
    failed = []
    for name, line in lines:
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        if run(line):
            failed.append(name)
        print(f"== {name}: {time.perf_counter() - start:.0f} s", flush=True)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--quick", action="store_true", help="the least of each: no figures")
    parser.add_argument("--only", help="benchmarks whose name holds this")
    parser.add_argument("--plink2", help="the program, to compare with")
    parser.add_argument("--wheels", type=Path, help="wheels of packages that ship data sets")
    options = parser.parse_args(arguments)
    chosen = [one for one in BENCHES if not options.only or options.only in one.name]
    lines = [
        (
            one.name,
            command(
                one,
                shared=options.shared,
                out=options.out,
                quick=options.quick,
                plink2=options.plink2,
                wheels=options.wheels,
            ),
        )
        for one in chosen
    ]
    failed = run_all(lines, run=lambda line: subprocess.run(line, check=False).returncode)
    if failed or not chosen:
        print(f"failed: {', '.join(failed) or 'no benchmark of that name'}", file=sys.stderr)
    return int(bool(failed) or not chosen)


if __name__ == "__main__":
    sys.exit(main())
