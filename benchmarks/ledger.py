"""What one charge costs in a ledger of 1,000 rows and 50 studies: `python -m benchmarks.ledger`.

The budget is 20 ms a charge, durable on disk. Printed are the median and the 95th percentile of
charges and admissions, and of the guard's whole `begin` without its policy (reserve, charge, head).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dp_accounting import (
    ComposedDpEvent,
    GaussianDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)

from fedward_client.adapters.sqlite_ledger import SqliteLedger
from fedward_common.canonical import sha256_hex
from fedward_common.ids import Digest, StudyId
from fedward_common.privacy.ledger import Reservation
from fedward_common.privacy.ledger_values import Limits

ROUNDS = 19
LIMITS = Limits(max_epsilon_per_study=10.0, max_epsilon_total=1000.0, delta=1e-4)


def _now() -> datetime:
    return datetime.now(UTC)


def _step(number: int) -> SelfComposedDpEvent:
    """A round of study `number`; every study has its own noise, so nothing is shared."""
    return SelfComposedDpEvent(PoissonSampledDpEvent(0.1, GaussianDpEvent(5 + number / 100)), 4)


def _reservation(number: int, *, rounds: int = ROUNDS) -> Reservation:
    name = f"study-{number}"
    event = SelfComposedDpEvent(_step(number).event, 4 * rounds)
    return Reservation(
        study=Digest(sha256_hex(name.encode())),
        study_id=StudyId(name),
        unit="patient",
        event=ComposedDpEvent([event]),
        delta=1e-4,
        epsilon=10.0,
        epsilon_is="admission",
        rounds=rounds,
        releases=0,
    )


def _charge(ledger: SqliteLedger, study: int, number: int) -> None:
    digest = _reservation(study).study
    ledger.charge(
        [_step(study)],
        study=digest,
        slot=f"{digest}/train/{number}",
        key=Digest(sha256_hex(f"{study} {number}".encode())),
        purpose="round",
    )


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def _summary(times: list[float]) -> dict[str, float]:
    return {
        "median_ms": round(statistics.median(times), 2),
        "p95_ms": round(statistics.quantiles(times, n=20)[-1], 2),
        "runs": len(times),
    }


def measure(folder: Path, *, studies: int = 50, repeat: int = 40) -> dict[str, Any]:
    """The figures over a fresh ledger in `folder`."""
    ledger = SqliteLedger(folder / "ledger.sqlite", limits=LIMITS, clock=_now)
    admissions = []
    for study in range(studies):
        reservation = _reservation(study)
        admissions.append(_timed(lambda r=reservation: ledger.reserve(r)))  # type: ignore[misc]
        for number in range(1, ROUNDS):
            _charge(ledger, study, number)
    whole = _reservation(studies, rounds=repeat)
    ledger.reserve(whole)
    rows = ledger.head().seq
    charges, begins = [], []
    for number in range(1, repeat + 1):
        if number % 2:
            charges.append(_timed(lambda n=number: _charge(ledger, studies, n)))  # type: ignore[misc]
        else:
            begins.append(_timed(lambda n=number: _begin(ledger, whole, n, studies)))  # type: ignore[misc]
    ledger.close()
    return {
        "rows": rows,
        "studies": studies + 1,
        "charge": _summary(charges),
        "begin": _summary(begins),
        "admission": _summary(admissions[-10:]),
    }


def _begin(ledger: SqliteLedger, whole: Reservation, number: int, study: int) -> None:
    """What the guard asks of the ledger for one instruction."""
    ledger.head()
    ledger.reserve(whole)
    ledger.head()
    _charge(ledger, study, number)
    ledger.head()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder))
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
