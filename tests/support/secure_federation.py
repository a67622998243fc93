"""Hospitals with real guards and workers in one process, behind a fleet that can lose a message.

Guards keep real ledgers, journals and replies on disk; only Flower and the network are left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli_w

from fedward_client.adapters.key_files import write_signing_key
from fedward_client.guard.main import RunningGuard, start_guard
from fedward_client.guard.service import GuardService
from fedward_client.settings import load_site_settings
from fedward_client.train_round import Worker
from fedward_client.training.trainer import PerformanceFlags
from fedward_common.ids import SiteId
from fedward_common.privacy.randomness import Csprng, RandomSource
from fedward_common.study.encoding import PatientRecords, Row
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import SigningKey
from fedward_common.wire import Envelope, Instruction
from fedward_server.fleet import Answer, Silent
from fedward_server.study_run import StudyRun
from tests.support.federation import FakeClock, FakeStore
from tests.support.guard_site import a_study, about, object_ids, signed, site_values, update_shapes

Spoil = Callable[[SiteId, Instruction], bool]
"""Whether the answer of a site to an instruction is lost on its way."""


@dataclass(kw_only=True)
class Patients:
    """The records of one hospital: one a patient, two features in [-1, 1]."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    table: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def made_up(cls, seed: int, *, count: int = 60) -> "Patients":
        generator = np.random.default_rng(seed)
        features = generator.uniform(-1, 1, size=(count, 2)).astype(np.float32)
        labels = (features @ [1.0, -0.5] + generator.normal(0, 0.3, count) > 0).astype(np.float32)
        table = [
            {"patient": str(n), "age": f"{60 + 50 * a:.3f}", "pressure": f"{60 + 50 * b:.3f}"}
            for n, (a, b) in enumerate(features)
        ]
        return cls(features=features, labels=labels, table=table)

    def records(self, study: StudySpec, *, part: str) -> PatientRecords:
        del study, part
        return PatientRecords(
            features=self.features,
            labels=self.labels,
            patient=np.arange(len(self.labels), dtype=np.int64),
        )

    def rows(self, study: StudySpec) -> list[Row]:
        del study
        return list(self.table)


@dataclass(kw_only=True)
class Hospital:
    """One site: its guard, its worker, what it was asked."""

    name: SiteId
    key: SigningKey
    folder: Path
    patients: Patients
    study: StudySpec
    policy: dict[str, Any]
    draws: Callable[[], RandomSource] = Csprng
    noise: Callable[[], RandomSource] = Csprng
    running: RunningGuard = field(init=False)
    service: GuardService = field(init=False)
    sealed: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "keys").mkdir(parents=True)
        write_signing_key(self.folder / "keys" / "signing.pem", self.key)
        values = site_values(site=self.name, **self.policy)
        (self.folder / "site.toml").write_text(tomli_w.dumps(values))
        approvals = load_site_settings(self.folder / "site.toml").approvals_folder
        approvals.mkdir(parents=True, mode=0o700)
        said = about(self.study, site=self.name)
        (approvals / f"{said.sha256}.json").write_bytes(said.canonical)
        self.start()

    def start(self) -> None:
        """Starts the guard (again): what was in memory only is gone."""
        settings = load_site_settings(self.folder / "site.toml")
        self.running = start_guard(settings, object_ids=object_ids, shapes=update_shapes)
        self.service = replace(self.running.service, noise=self.noise)

    def restart(self) -> None:
        self.running.close()
        self.start()

    def answer(self, envelope: Envelope) -> Envelope:
        worker = Worker(
            guard=self.service,
            source=self.patients,
            flags=PerformanceFlags(),
            randomness=self.draws,
        )
        return worker.answer(envelope)

    @property
    def refused(self) -> list[str]:
        """The named reasons for which this site left a secret sum, from its journal."""
        journal = self.running.service.log
        found = [e for e in _events(journal) if e.action == "secagg.refused"]
        return [str(event.fields["code"]) for event in found]


def _events(journal: Any) -> list[Any]:
    from fedward_common.log.events import read_events

    return list(read_events(journal._path))


@dataclass(kw_only=True)
class Federation:
    """A `Fleet` of hospitals; `lost` decides which answers never come, `tamper` changes asks."""

    study: StudySpec
    hospitals: Mapping[SiteId, Hospital]
    clock: FakeClock = field(default_factory=FakeClock)
    lost: Spoil = lambda site, instruction: False
    tamper: Callable[[SiteId, Envelope], Envelope] = lambda site, envelope: envelope
    offline: set[SiteId] = field(default_factory=set)
    events: Silent = field(default_factory=Silent)
    seen: list[tuple[SiteId, Instruction, Envelope]] = field(default_factory=list)
    inbox: list[Answer] = field(default_factory=list)
    messages: dict[tuple[str, int], bytes] = field(default_factory=dict)

    def online(self) -> frozenset[SiteId]:
        return frozenset(self.hospitals) - self.offline

    def send(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        self.inbox = []
        for site, envelope in envelopes.items():
            instruction = Instruction.parse(envelope.header)
            if site in self.offline:
                continue
            answer = self.hospitals[site].answer(self.tamper(site, envelope))
            self.seen.append((site, instruction, answer))
            if not self.lost(site, instruction):
                self.inbox.append(Answer(site=site, envelope=answer))

    def send_again(self, site: SiteId, envelope: Envelope) -> None:
        waiting = self.inbox
        self.send({site: envelope})
        self.inbox = [*waiting, *self.inbox]

    def receive(self, *, timeout_seconds: float) -> list[Answer]:
        if not self.inbox:
            self.clock.sleep(max(timeout_seconds, 0.01))
            return []
        answers, self.inbox = self.inbox, []
        return answers

    def run(self) -> StudyRun:
        """A run of the study over this fleet."""
        return StudyRun(
            study=self.study,
            signed_study=signed(self.study),
            fleet=self,
            clock=self.clock,
            store=FakeStore(),
            events=self.events,
            site_keys={name: one.key.public_hex for name, one in self.hospitals.items()},
        )

    def actions(self, action: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events.heard if name == action]

    def close(self) -> None:
        for hospital in self.hospitals.values():
            hospital.running.close()


def secure_study(
    keys: Mapping[str, SigningKey],
    *,
    placement: str = "distributed",
    rounds: int = 3,
    local_steps: int = 1,
    quorum: int | None = None,
    change: Mapping[str, Any] | None = None,
    **dp: Any,
) -> StudySpec:
    """`a_study` with secure sums; quorum as low as rules 1 let it be."""
    plan: dict[str, Any] = {"epsilon": 5.0, "delta": min(1e-4, 1 / (2001 * len(keys)))}
    plain = a_study(
        id="secure", rounds=rounds, local_steps=local_steps, sites=keys, **(plan | dp)
    ).model_dump(mode="json")
    plain["dp"]["placement"] = placement
    plain["secure_sum"] = True
    plain["quorum"] = len(keys)
    fewest = StudySpec.model_validate(plain).thresholds.fewest_survivors
    plain["quorum"] = fewest if quorum is None else quorum
    return StudySpec.model_validate(plain | dict(change or {}))


def federation(
    folder: Path,
    *,
    sites: int = 3,
    draws: Callable[[int], Callable[[], RandomSource]] | None = None,
    noise: Callable[[int], Callable[[], RandomSource]] | None = None,
    policy: Mapping[str, Any] | None = None,
    **study: Any,
) -> Federation:
    """So many hospitals with real guards and one study among them."""
    keys = {f"s{n}": SigningKey.generate() for n in range(1, sites + 1)}
    spec = secure_study(keys, **study)
    rules = {
        "max_epsilon_per_study": 10.0,
        "max_epsilon_total": 10.0,
        "max_epsilon_if_all_others_collude": 100.0,
        "min_noise": 0.1,
        **(policy or {}),
    }
    hospitals = {
        SiteId(name): Hospital(
            name=SiteId(name),
            key=key,
            folder=folder / name,
            patients=Patients.made_up(number),
            study=spec,
            policy=rules,
            draws=Csprng if draws is None else draws(number),
            noise=Csprng if noise is None else noise(number),
        )
        for number, (name, key) in enumerate(keys.items())
    }
    return Federation(study=spec, hospitals=hospitals)
