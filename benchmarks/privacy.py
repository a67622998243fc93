"""What patient-level DP-SGD costs beside plain training and beside Opacus at record level.

    python -m benchmarks.privacy --networks mlp lstm cnn --repeats 10 --out runs/bench-privacy.json

Time is the CPU time of one process on one thread, all engines of a network interleaved, one warm-up
each. A step is: forward, gradients, clipping and summing; noise and the optimiser are left out for
all, as they cost the same. Four records a patient. Opacus' engines take Opacus' recurrent layers,
the others Fedward's, and non-private training also torch's own. Memory is the growth of the peak
resident size (VmHWM, Linux) over two steps in a child process of its own, after model and records
are made.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.networks import FULL, Network
from fedward_client.training.patient_dp.back_end import BackEnd
from fedward_client.training.patient_dp.bookkeeping_backend import BookkeepingBackEnd, Geometry
from fedward_client.training.patient_dp.engine import PatientDpEngine
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_client.training.patient_dp.plan import PatientDpPlan, PatientTensors
from fedward_common.errors import ModelRefused
from fedward_common.models.dp_layers import as_opacus, load_opacus

RECORDS_PER_PATIENT: Final = 4
CLIP: Final = 1.0
BATCH: Final = {"mlp": 512, "lstm": 64, "gru": 64, "cnn": 128, "transformer": 128, "unet3d": 16}
"""Records a step; 16 where none is named."""
FUSED: Final = "non-private, torch's layer"
ENGINES: Final = (
    "non-private",
    FUSED,
    "opacus hooks, record",
    "opacus functorch, record",
    "opacus ghost, record",
    "patient loop",
    "patient bookkeeping",
)
Step = Callable[[], object]


class Everybody:
    """Takes every patient and every record, and adds no noise: the step alone is timed."""

    def uniform(self, count: int) -> np.ndarray:
        return np.arange(count) / max(count, 1)

    def normal(self, count: int) -> np.ndarray:
        return np.zeros(count)


def losses(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none")


def make_step(engine: str, network: Network, *, records: int) -> Step:
    """One step of `engine` on made-up records, ready to be called again and again."""
    generator = torch.Generator().manual_seed(0)
    features = network.records(records, generator=generator)
    labels = (torch.arange(records) % 2).float()
    model = ((engine == FUSED and network.fused) or network.build)().train()
    if engine.startswith("non-private"):
        return lambda: torch.autograd.grad(
            losses(model(features), labels).mean(), list(model.parameters())
        )
    if engine.startswith("opacus"):
        return _opacus_step(engine.split()[1].strip(","), model, features, labels)
    return _patient_step(engine, model, features, labels)


def _opacus_step(mode: str, model: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> Step:
    load_opacus()
    as_opacus(model)
    from opacus.grad_sample import (  # noqa: PLC0415 - costs a second
        GradSampleModule,
        GradSampleModuleFastGradientClipping,
    )

    if mode == "ghost":
        ghost = GradSampleModuleFastGradientClipping(
            model, loss_reduction="sum", max_grad_norm=CLIP, use_ghost_clipping=True
        )

        def clip_twice() -> None:
            found = losses(ghost(features), labels)
            found.sum().backward(retain_graph=True)
            scale = ghost.get_clipping_coef()
            model.zero_grad()
            ghost.disable_hooks()
            (scale * found).sum().backward()
            ghost.enable_hooks()
            model.zero_grad()

        return clip_twice
    hooked: Any = GradSampleModule(
        model, loss_reduction="sum", strict=False, force_functorch=mode == "functorch"
    )

    def clip() -> None:
        losses(hooked(features), labels).sum().backward()
        samples = [p.grad_sample for p in model.parameters()]
        norms = torch.stack([s.flatten(1).norm(dim=1) for s in samples]).norm(dim=0)
        scale = (CLIP / (norms + 1e-6)).clamp(max=1.0)
        for sample in samples:
            torch.einsum("i,i...", scale, sample)
        hooked.zero_grad()

    return clip


def _patient_step(
    engine: str, model: nn.Module, features: torch.Tensor, labels: torch.Tensor
) -> Step:
    records = len(labels)
    places = max(1, records // RECORDS_PER_PATIENT)
    made: BackEnd = LoopBackEnd(model, loss=losses)
    if engine == "patient bookkeeping":
        shape = Geometry(slots=places, records=RECORDS_PER_PATIENT)
        made = BookkeepingBackEnd(model, loss=losses, geometry=shape)
    plan = PatientDpPlan(
        noise_multiplier=1.0,
        clip_norm=CLIP,
        sampling_probability=1.0,
        max_records_per_patient=RECORDS_PER_PATIENT,
        public_patients=places,
    )
    runner = PatientDpEngine(
        made,
        plan,
        parameters=sum(p.numel() for p in model.parameters()),
        sampling=Everybody(),
        noise=Everybody(),
        max_records_per_chunk=records,
    )
    starts = np.arange(0, records + 1, RECORDS_PER_PATIENT, dtype=np.int64)
    people = PatientTensors(features=features, labels=labels, starts=starts)
    released: torch.Tensor | None = None

    def step() -> None:
        nonlocal released
        released = runner.step(people, into=released)  # as `LocalTrainer` does

    return step


def measure(name: str, *, repeats: int) -> dict[str, Any]:
    """CPU milliseconds of a step and MiB of peak growth, per engine; an error where it fails."""
    network, records = FULL[name], BATCH.get(name, 16)
    steps: dict[str, Step] = {}
    failed: dict[str, str] = {}
    for engine in ENGINES:
        if engine == FUSED and network.fused is None:
            continue
        try:
            steps[engine] = make_step(engine, network, records=records)
            steps[engine]()
        except (ModelRefused, NotImplementedError, RuntimeError, AttributeError, KeyError) as error:
            steps.pop(engine, None)
            failed[engine] = f"{type(error).__name__}: {error}"[:200]
    times: dict[str, list[float]] = {engine: [] for engine in steps}
    for _ in range(repeats):
        for engine, step in steps.items():
            begun = time.process_time()
            step()
            times[engine].append(1e3 * (time.process_time() - begun))
    plain = statistics.mean(times["non-private"])
    rows = {
        engine: {
            "cpu_ms": statistics.mean(found),
            "sd_ms": statistics.stdev(found),
            "times_non_private": statistics.mean(found) / plain,
            "peak_mib": _peak_mib(name, engine),
        }
        for engine, found in times.items()
    }
    return {"network": name, "records": records, "engines": rows, "failed": failed}


def _peak_mib(name: str, engine: str) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.privacy", "--peak-of", name, engine],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def print_peak(name: str, engine: str) -> None:
    step = make_step(engine, FULL[name], records=BATCH.get(name, 16))
    # 5 sets the kernel's high-water mark back to the present size; ru_maxrss keeps the parent's.
    Path("/proc/self/clear_refs").write_text("5")
    before = _high_water_mib()
    step()
    step()
    print(_high_water_mib() - before)


def _high_water_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status: expected a line VmHWM, found none")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--networks", nargs="+", default=list(FULL), choices=list(FULL))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--peak-of", nargs=2, default=None, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    # As in the worker. Six engines in one process have more kernels than oneDNN keeps by default,
    # and each would pay for the others' (DenseNet121 without privacy 265 ms instead of 190).
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
    if chosen.peak_of is not None:
        print_peak(*chosen.peak_of)
        return
    results = [measure(name, repeats=chosen.repeats) for name in chosen.networks]
    print("| network | engine | CPU ms | x non-private | peak MiB |\n|---|---|---|---|---|")
    for result in results:
        for engine, row in result["engines"].items():
            print(
                f"| {result['network']} ({result['records']}) | {engine} | {row['cpu_ms']:.1f} +- "
                f"{row['sd_ms']:.1f} | {row['times_non_private']:.2f} | {row['peak_mib']:.0f} |"
            )
        for engine, why in result["failed"].items():
            print(f"| {result['network']} | {engine} | fails: {why[:80]} | | |")
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": platform.processor() or platform.machine(),
            "torch": version("torch"),
            "opacus": version("opacus"),
            "repeats": chosen.repeats,
        }
        chosen.out.write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
