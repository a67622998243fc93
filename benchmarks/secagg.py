"""Mask and unmask of the secure sum beside Flower's SecAgg+, and what it sends and holds.

    python -m benchmarks.secagg --sites 3 10 30 100 --out runs/bench-secagg.json

Time is CPU time of this process, both implementations in turns, one warm-up each. Both work on the
complete graph with every site there. Ours is the real state machine: a site's `mask` opens the
envelopes, agrees on keys and adds its masks; the coordinator takes every vector, rebuilds the
secrets from shares and takes the masks out. Flower's are the calls of its client and its workflow
on these vectors, in their order; its key agreement, Shamir and transport are left out, which is in
its favour. Quantising is in neither.

Each number of sites also has one whole round in which every site masks its own vector and the
opened sum is compared with the plain one. Memory is the peak that Python and numpy allocate
(tracemalloc), in vectors of 4 bytes a parameter, inputs included.
"""

import argparse
import base64
import json
import os
import platform
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

from fedward_common.ids import SiteId
from fedward_common.secagg.fixedpoint import Ring
from fedward_common.secagg.participant import Participant
from tests.support.secagg_round import Round

MODULUS: Final = 1 << 32
"""Flower's default ring."""
BYTES: Final = 4
WITH_DROPOUTS: Final = 10
"""From so many sites on, one is also lost after it masked for the others."""
Measured = dict[str, list[float]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 10, 30, 100])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--most-flower-sites", type=int, default=30)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    for sites in options.sites:
        with_flower = sites <= options.most_flower_sites
        repeats = options.repeats if with_flower else max(2, options.repeats // 3)
        rows.append(measured(sites, size=options.parameters, repeats=repeats, flower=with_flower))
        print(table(rows[-1:]), file=sys.stderr, flush=True)
    text = json.dumps(
        {"parameters": options.parameters, "sites": rows, "environment": environment()}, indent=2
    )
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    print(table(rows), file=sys.stderr)


def measured(sites: int, *, size: int, repeats: int, flower: bool) -> dict[str, Any]:
    """Everything that is reported about one number of sites."""
    whole = whole_round(sites, size=size)
    memory = peak_vectors(sites, size=size)
    vector = np.random.default_rng(sites).integers(0, MODULUS, size=size, dtype=np.uint32)
    losses = (0, 1) if sites >= WITH_DROPOUTS else (0,)
    times: Measured = {}
    for repeat in range(-1, repeats):
        step = {"site masks": site_seconds(sites, vector)}
        for lost in losses:
            step |= named(coordinator_seconds(sites, vector, lost=lost), lost=lost)
        if flower:
            step |= flower_seconds(sites, vector, losses=losses)
        if repeat >= 0:  # the first one warms up
            for name, seconds in step.items():
                times.setdefault(name, []).append(seconds)
    return {
        "sites": sites,
        "repeats": repeats,
        "cpu_seconds": {name: spread(values) for name, values in times.items()},
        "flower_to_ours": {
            part: spread(
                [theirs / own for theirs, own in zip(times[f"flower: {part}"], ours, strict=True)]
            )
            for part, ours in times.items()
            if f"flower: {part}" in times
        },
        "peak_vectors": memory,
        "whole_round": whole,
    }


def site_seconds(sites: int, vector: Ring) -> float:
    """One real site's masking of `vector`."""
    one = shared_round(sites, size=vector.size)
    party, boxes, own = one.parties[name(1)], one.coordinator.boxes_for(name(1)), vector.copy()
    return timed(lambda: party.mask(boxes, own))


def coordinator_seconds(sites: int, vector: Ring, *, lost: int) -> float:
    """Adding the vectors of all but `lost` sites and opening their sum.

    The numbers in the vectors do not matter here. As in every round of a study but the first, the
    sum is written where an earlier one was. Adding is not timed apart: the last vectors are added
    while the masks are taken out.
    """
    one = shared_round(sites, size=vector.size)
    one.coordinator.room = np.ones(vector.size, np.uint32)
    seconds = 0.0
    there = [name(number) for number in range(1, sites + 1 - lost)]
    for site in there:
        party_says_it_masked(one.parties[site], one.coordinator.boxes_for(site))
        seconds += timed(partial(one.coordinator.take_masked, site, vector))
    unmaskings(one)
    return seconds + timed(one.coordinator.sum)


def party_says_it_masked(party: Participant, boxes: dict[str, str]) -> None:
    """Brings a site to where it can unmask, at the price of one number instead of a vector."""
    party.mask(boxes, np.zeros(1, np.uint32))


def unmaskings(one: Round) -> None:
    """The consistency exchange and everybody's shares."""
    survivors = one.coordinator.close()
    for site in survivors:
        one.coordinator.take_signature(one.parties[SiteId(site)].sign_survivors(survivors))
    signatures = one.coordinator.signatures()
    for site in survivors:
        one.coordinator.take_unmasking(one.parties[SiteId(site)].unmask(signatures))


def named(seconds: float, *, lost: int) -> dict[str, float]:
    return {f"coordinator adds and unmasks{f', {lost} lost' if lost else ''}": seconds}


def flower_seconds(sites: int, vector: Ring, *, losses: Sequence[int]) -> dict[str, float]:
    """Flower's masking at one client, and its sum and unmasking at the server."""
    wide = [vector.astype(np.int64)]
    found = {"site masks": timed(lambda: flower_mask(sites, wide))}
    for lost in losses:
        found |= named(flower_open(sites, wide, lost=lost), lost=lost)
    return {f"flower: {part}": seconds for part, seconds in found.items()}


def flower_mask(sites: int, vector: list[Any]) -> list[Any]:
    """`_collect_masked_vectors` of Flower's client from the private mask on."""
    shapes = [array.shape for array in vector]
    masked = parameters_addition(vector, pseudo_rand_gen(flower_seed(), MODULUS, shapes))
    for other in range(1, sites):
        mask = pseudo_rand_gen(flower_seed(), MODULUS, shapes)
        combine = parameters_addition if other % 2 else parameters_subtraction
        masked = combine(masked, mask)
    return parameters_mod(masked, MODULUS)


def flower_open(sites: int, vector: list[Any], *, lost: int) -> float:
    """The sum of the collected vectors and `unmask_stage` of Flower's workflow."""
    shapes, there = [array.shape for array in vector], sites - lost
    start, total = time.process_time(), vector
    for _ in range(1, there):
        total = parameters_addition(total, vector)
    total = parameters_mod(total, MODULUS)
    for _ in range(there + lost * there):
        total = parameters_subtraction(total, pseudo_rand_gen(flower_seed(), MODULUS, shapes))
    parameters_mod(total, MODULUS)
    return time.process_time() - start


def flower_seed() -> bytes:
    return base64.urlsafe_b64encode(os.urandom(32))


def whole_round(sites: int, *, size: int) -> dict[str, Any]:
    """One round with every site's own vector: is the sum right, what did it cost, what was sent."""
    start = time.process_time()
    one = shared_round(sites, size=size)
    timing = dict.fromkeys(("set-up and shares", "mask", "coordinator"), 0.0)
    timing["set-up and shares"] = time.process_time() - start
    expected = np.zeros(size, dtype=np.uint32)
    sent = dict.fromkeys(("advert", "envelopes", "boxes received"), 0)
    for number, (site, party) in enumerate(one.parties.items()):
        vector = np.random.default_rng(number).integers(0, MODULUS, size=size, dtype=np.uint32)
        boxes = one.coordinator.boxes_for(site)
        expected += vector
        start = time.process_time()
        masked = party.mask(boxes, vector)
        between = time.process_time()
        one.coordinator.take_masked(site, masked)
        timing["mask"] += between - start
        timing["coordinator"] += time.process_time() - between
    unmaskings(one)
    first = one.parties[name(1)]
    assert first._advert is not None
    sent["advert"] = len(first._advert.canonical)
    sent["envelopes"] = sum(len(box) // 2 for box in one.coordinator._boxes[name(1)].values())
    sent["boxes received"] = sum(len(b) // 2 for b in one.coordinator.boxes_for(name(1)).values())
    sent["unmasking"] = len(one.coordinator._unmaskings[name(1)].canonical)
    start = time.process_time()
    opened = one.coordinator.sum()
    timing["coordinator"] += time.process_time() - start
    if not np.array_equal(opened, expected):
        raise SystemExit(f"{sites} sites: the opened sum is not the sum of the vectors")
    return {
        "opened_sum_is_exact": True,
        "cpu_seconds": timing,
        "vector_bytes_per_parameter": masked.nbytes / size,
        "control_bytes_per_site": sent,
    }


def peak_vectors(sites: int, *, size: int) -> dict[str, float]:
    """The most memory that a site needs to mask and the coordinator to sum, in vectors."""
    one = shared_round(sites, size=size)
    party, boxes = one.parties[name(1)], one.coordinator.boxes_for(name(1))
    vector_bytes = BYTES * size

    def as_site() -> None:
        vector = np.zeros(size, np.uint32)
        party.mask(boxes, vector)

    def as_coordinator() -> None:
        for site in one.parties:
            one.coordinator.take_masked(site, np.ones(size, np.uint32))
        unmaskings(one)
        one.coordinator.sum()

    peaks = {"site": peak_bytes(as_site) / vector_bytes}
    for site, other in one.parties.items():
        if site != name(1):
            party_says_it_masked(other, one.coordinator.boxes_for(site))
    return peaks | {"coordinator": peak_bytes(as_coordinator) / vector_bytes}


def peak_bytes(action: Callable[[], None]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def shared_round(sites: int, *, size: int) -> Round:
    """A fresh round in which everybody has shared."""
    one = Round(sites=sites, size=size)
    one.advertised()
    one.shared()
    return one


def name(number: int) -> SiteId:
    return SiteId(f"s{number}")


def timed(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown: medians of CPU seconds, and of the ratio in each turn."""
    lines = [
        "| sites | what | Flower CPU s | Fedward CPU s | ratio: median (least to most) |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        seconds, ratios = row["cpu_seconds"], row["flower_to_ours"]
        for part in (part for part in seconds if not part.startswith("flower")):
            own = f"{seconds[part]['median']:.3f}"
            if part in ratios:
                ratio, theirs = ratios[part], f"{seconds[f'flower: {part}']['median']:.2f}"
                times = f"{ratio['median']:.1f} ({ratio['min']:.1f} to {ratio['max']:.1f})"
            else:
                theirs = times = "-"
            lines.append(f"| {row['sites']} | {part} | {theirs} | {own} | {times} |")
    return "\n".join(lines)


def environment() -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {package: version(package) for package in ("flwr", "cryptography", "numpy")},
    }


if __name__ == "__main__":
    main()
