"""What a step of a phase costs: `make bench-phase`.

Real processes on this machine: edge, and for each site a guard, a gateway and a worker; the parent
is the ServerApp (StudyRun with its log, checkpoints and ledger heads). Mutual TLS, receipts, ledger
and journals are those of a hospital. Left out: Flower, which only opens and ends the phase, and
training, in whose place the worker seals the same tensors every time.
"""

# ruff: noqa: PLC0415 - each role of a process imports what a hospital's process imports
import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from fedward_common.arrays import tensors_to_bytes
from fedward_common.channel.tls import require_tls13
from fedward_common.ids import SiteId
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import SigningKey
from fedward_common.wire import Envelope
from fedward_server.fleet import Answer

WARM_STEPS: Final = 5
SIZES: Final = {"small": [], "1 MB": [512, 512]}
"""Name -> hidden widths of the model that travels both ways; none is logistic regression."""


# A site's processes: this module again, with a role.


def serve_guard(folder: Path) -> None:
    """Runs a site's guard until SIGTERM."""
    from fedward_client.adapters.flower_records import object_ids
    from fedward_client.guard.main import run_guard
    from fedward_client.settings import load_site_settings

    shapes = _shapes(folder)
    run_guard(
        load_site_settings(folder / "site.toml"),
        object_ids=object_ids,
        shapes=lambda _study: shapes,
    )


def serve_gateway(folder: Path, address: str) -> None:
    """Runs what a site's gateway has of phases until SIGTERM."""
    require_tls13()
    from fedward_client.adapters.flower_records import object_ids
    from fedward_client.gateway.channel import EdgeChannel
    from fedward_client.gateway.phases import PhaseAccess, PhaseDesk
    from fedward_client.guard.client import GuardClient
    from fedward_client.settings import load_site_settings
    from fedward_common.channel.credentials import TlsFiles

    settings = load_site_settings(folder / "site.toml")

    async def serve() -> None:
        stop, one = asyncio.Event(), asyncio.Lock()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        tls = TlsFiles(
            certificate=folder / "tls" / "peer.pem",
            key=folder / "tls" / "peer.key",
            ca=folder / "tls" / "root.pem",
        )
        channel = EdgeChannel(coordinator=address, server_name=None, tls=tls)

        async def ask(question: Any, *arguments: object) -> Any:
            async with one:
                return await asyncio.to_thread(question, *arguments)

        desk = PhaseDesk(
            access=PhaseAccess(path=settings.phase_socket, worker_uid=os.geteuid()),
            streams=channel,
            guard=GuardClient(settings.gateway_socket),
            ask=ask,
            object_ids=object_ids,
        )
        await desk.start()
        await stop.wait()
        await desk.stop()
        await channel.close()

    asyncio.run(serve())


def work(folder: Path) -> None:
    """Answers one message, which may open a phase, as the worker's task does."""
    from fedward_client.guard.client import GuardClient, StoredReply
    from fedward_client.phase import opens_phase, serve_phase
    from fedward_client.settings import load_site_settings

    settings = load_site_settings(folder / "site.toml")
    guard, payload = GuardClient(settings.worker_socket), _payload(folder)

    def answering(envelope: Envelope) -> Envelope:
        grant = guard.begin(envelope.header, envelope.blobs["study"])
        if isinstance(grant, StoredReply):
            return grant.envelope
        return guard.seal(grant.receipt, payload)

    (folder / "warm").touch()  # a hospital's worker forks tasks from a process that is warm
    while not (folder / "opening").exists():
        time.sleep(0.02)
    opening = Envelope(
        header=(folder / "opening").read_bytes(),
        blobs={"study": (folder / "study").read_bytes(), "model": b""},
    )
    answer = answering(opening)
    if opens_phase(answer):
        serve_phase(opening, answering, socket_path=settings.phase_socket)
    (folder / "answer").write_bytes(answer.header)


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(shape) for name, shape in json.loads((folder / "shapes").read_text()).items()
    }


def _payload(folder: Path) -> bytes:
    return tensors_to_bytes(
        {name: np.full(shape, 0.5, dtype=np.float32) for name, shape in _shapes(folder).items()}
    )


# The coordinator.


@dataclass(kw_only=True)
class WorkerMessages:
    """Openings that wake one worker process per site; what Flower would do."""

    folders: Mapping[SiteId, Path]
    study: bytes
    workers: Mapping[SiteId, subprocess.Popen[bytes]]
    under_way: dict[SiteId, subprocess.Popen[bytes]] = field(default_factory=dict)

    def online(self) -> frozenset[SiteId]:
        """Every site."""
        return frozenset(self.folders)

    def send(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        """Nothing goes by message here."""
        if envelopes:
            raise RuntimeError(f"expected every step by stream, found {sorted(envelopes)}")

    def add(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        """Wakes the workers."""
        for site, envelope in envelopes.items():
            folder = self.folders[site]
            (folder / "study").write_bytes(self.study)
            (folder / "opening.new").write_bytes(envelope.header)
            (folder / "opening.new").rename(folder / "opening")
            self.under_way[site] = self.workers[site]

    def receive(self, *, timeout_seconds: float) -> list[Answer]:
        """The answers of workers that ended."""
        time.sleep(min(timeout_seconds, 0.05))
        ended = [site for site, worker in self.under_way.items() if worker.poll() is not None]
        for site in ended:
            del self.under_way[site]
        return [
            Answer(site=s, envelope=Envelope(header=(self.folders[s] / "answer").read_bytes()))
            for s in ended
        ]


@dataclass(kw_only=True)
class Timed:
    """A run's events, and when each round was committed."""

    events: Any
    committed: list[float] = field(default_factory=list)
    on_step: Any = None

    def emit(self, action: str, **fields: Any) -> None:
        """Tells one event."""
        self.events.emit(action, **fields)
        if action == "round.committed":
            self.committed.append(time.perf_counter())
            self.on_step(len(self.committed))


def measure(sites: int, size: str, steps: int) -> dict[str, Any]:
    """Seconds and CPU seconds of one step with so many sites and a model of that size."""
    require_tls13()
    from fedward_common.models.registry import model_shapes
    from fedward_server.adapters.ledger_heads import HeadsFile
    from fedward_server.adapters.phase_link import PhaseLink
    from fedward_server.adapters.run_files import RunFolder, SystemClock
    from fedward_server.phase_fleet import PhaseFleet
    from fedward_server.study_run import StudyRun
    from tests.support.edge_process import running_edge
    from tests.support.guard_site import KEYS, LEAD, a_study, make_site

    names = [f"site-{number}" for number in range(1, sites + 1)]
    KEYS.update({name: SigningKey.generate() for name in names})
    study = _study(a_study, names, size, steps + WARM_STEPS, {n: KEYS[n] for n in names})
    signed = SignedStudy.sign(study, LEAD).canonical
    shapes = model_shapes(study.model, inputs=2)
    processes: dict[str, list[psutil.Process]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir="/tmp") as root, running_edge(Path(root), *names) as edge:
        folders, children = dict[SiteId, Path](), list[subprocess.Popen[bytes]]()
        workers = dict[SiteId, subprocess.Popen[bytes]]()
        try:
            for name in names:
                folder = make_site(Path(root) / name, study, site=name).folder
                (folder / "shapes").write_text(json.dumps(shapes))
                tls = edge.tls(edge.sites[name].identity)
                tls.certificate.parent.rename(folder / "tls")
                folders[SiteId(name)] = folder
                for role, options in (("guard", ()), ("gateway", (edge.address,))):
                    children.append(_started(role, folder, *options))
                    processes[role].append(psutil.Process(children[-1].pid))
                workers[SiteId(name)] = _started("worker", folder)
                children.append(workers[SiteId(name)])
                processes["worker"].append(psutil.Process(children[-1].pid))
            _wait(folders.values(), children)
            openings = WorkerMessages(folders=folders, study=signed, workers=workers)
            fleet = PhaseFleet(
                study=study,
                messages=WorkerMessages(folders=folders, study=signed, workers=workers),
                openings=openings,
                link=PhaseLink(edge.settings.phase_socket),
                clock=time.monotonic,
            )
            processes["edge"] = [psutil.Process(edge.process.pid)]
            processes["serverapp"] = [psutil.Process()]
            marks: dict[str, float] = {}

            def on_step(number: int) -> None:
                if number == WARM_STEPS:
                    marks.update(_cpu(processes))
                if number == WARM_STEPS + steps:
                    marks.update({f"{k} end": v for k, v in _cpu(processes).items()})

            run_folder = RunFolder(Path(root) / "run")
            timed = Timed(events=run_folder, on_step=on_step)
            StudyRun(
                study=study,
                signed_study=signed,
                fleet=fleet,
                clock=SystemClock(),
                store=run_folder,
                events=timed,
                heads=HeadsFile(edge.settings.state),
            ).run()
            fleet.end()
        except Exception:
            for log in Path(root).rglob("*.log"):
                print(f"== {log.parent.name}/{log.name}", log.read_text()[-1500:], file=sys.stderr)
            raise
        finally:
            for child in children:
                child.terminate()
            for child in children:
                child.wait(20)
    times = np.diff(timed.committed[WARM_STEPS - 1 :])
    cpu = {k: (marks[f"{k} end"] - marks[k]) / steps * 1000 for k in processes}
    return {
        "sites": sites,
        "model": size,
        "payload_bytes": len(
            tensors_to_bytes({n: np.zeros(s, np.float32) for n, s in shapes.items()})
        ),
        "steps": len(times),
        "ms_median": float(np.median(times)) * 1000,
        "ms_p95": float(np.quantile(times, 0.95)) * 1000,
        "ms_min": float(times.min()) * 1000,
        "cpu_ms": {name: round(value, 2) for name, value in cpu.items()},
        "cpu_ms_all": round(sum(cpu.values()), 1),
        "load": os.getloadavg()[0],
    }


def measure_together(sites: int, steps: int) -> dict[str, Any]:
    """As `measure`, with all sites and the ServerApp in one process beside the edge's.

    For more sites than a machine has room for; without the ServerApp's files.
    """
    require_tls13()
    from tests.support.edge_process import running_edge
    from tests.support.guard_site import KEYS, a_study
    from tests.support.phase_sites import MODEL, PhaseSites

    names = [f"site-{number}" for number in range(1, sites + 1)]
    KEYS.update({name: SigningKey.generate() for name in names})
    study = _study(a_study, names, "small", steps + WARM_STEPS, {n: KEYS[n] for n in names})
    times = list[float]()
    with tempfile.TemporaryDirectory(dir="/tmp") as root, running_edge(Path(root), *names) as edge:
        processes = {
            "edge": [psutil.Process(edge.process.pid)],
            "sites and serverapp": [psutil.Process()],
        }
        made = PhaseSites(edge, Path(root) / "sites", study)
        for site in made.sites.values():
            site.payload = lambda: MODEL
        for number in range(1, steps + WARM_STEPS + 1):
            if number == WARM_STEPS + 1:
                before = _cpu(processes)
            began = time.perf_counter()
            if len(made.ask(number).accepted) != sites:
                raise RuntimeError(f"step {number}: expected an answer of every site")
            times.append(time.perf_counter() - began)
        after = _cpu(processes)
        made.close()
    measured = np.array(times[WARM_STEPS:])
    cpu = {name: (after[name] - before[name]) / steps * 1000 for name in processes}
    return {
        "sites": sites,
        "model": "small",
        "together": True,
        "steps": steps,
        "ms_median": float(np.median(measured)) * 1000,
        "ms_p95": float(np.quantile(measured, 0.95)) * 1000,
        "ms_min": float(measured.min()) * 1000,
        "cpu_ms": {name: round(value, 2) for name, value in cpu.items()},
        "cpu_ms_all": round(sum(cpu.values()), 1),
        "load": os.getloadavg()[0],
    }


def _study(
    a_study: Any, names: list[str], size: str, rounds: int, keys: Mapping[str, SigningKey]
) -> StudySpec:
    made: StudySpec = a_study(
        id="phase",
        rounds=rounds,
        local_steps=1,
        sites=keys,
        releases=0,
        sampling_probability=0.01,
        noise_multiplier=8.0,
        delta=1 / (10 * 200 * len(names)),
    )
    changes: dict[str, Any] = {"deadline_seconds": 120.0}
    if SIZES[size]:
        widths = {"name": "mlp", "hidden": tuple(SIZES[size])}
        changes["model"] = made.model.model_copy(update=widths)
    return made.model_copy(update=changes)


def _started(role: str, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    with (folder / f"{role}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.phase", "--role", role, str(folder), *options],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def _wait(folders: Any, children: list[subprocess.Popen[bytes]]) -> None:
    limit = time.monotonic() + 300
    names = ("run/gateway.sock", "run/phase/phase.sock", "warm")
    needed = [folder / name for folder in folders for name in names]
    while not all(path.exists() for path in needed):
        if time.monotonic() > limit or any(child.poll() is not None for child in children):
            raise RuntimeError(f"expected every site to listen; see the logs beside {needed[0]}")
        time.sleep(0.1)


def _cpu(processes: Mapping[str, list[psutil.Process]]) -> dict[str, float]:
    return {
        name: sum(sum(one.cpu_times()[:2]) for one in those) for name, those in processes.items()
    }


def main() -> None:
    """Measures, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="*", default=[3])
    parser.add_argument("--together", type=int, nargs="*", default=[16])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--role", nargs="+")
    asked = parser.parse_args()
    if asked.together and not asked.role:
        require_tls13()
        from tests.support import phase_sites  # noqa: F401 - before sites are added to its keys
    if asked.role:
        role, folder, *rest = asked.role
        roles = {"guard": serve_guard, "gateway": serve_gateway, "worker": work}
        roles[role](Path(folder), *rest)  # type: ignore[operator]
        return
    rows = [measure(sites, size, asked.steps) for size in asked.sizes for sites in asked.sites]
    rows += [measure_together(sites, asked.steps) for sites in asked.together]
    for row in rows:
        print(json.dumps(row))
    if asked.out:
        facts = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "goal_ms": {"3": 50, "16": 250},
            "median_of_medians_ms": statistics.median(row["ms_median"] for row in rows),
            "rows": rows,
        }
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
