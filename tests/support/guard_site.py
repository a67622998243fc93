"""One hospital with a real guard: keys, site.toml, a signed study, in a temporary folder."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from fedward_client.adapters.key_files import write_signing_key
from fedward_client.guard.client import GuardClient
from fedward_client.settings import SiteSettings, load_site_settings
from fedward_common.arrays import tensors_to_bytes
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import SigningKey, key_sha256
from fedward_common.trust.statements import Statement
from fedward_common.wire import Envelope, Instruction

LEAD = SigningKey.generate()
STEWARD = SigningKey.generate()
STEWARD_NAME = "Dr. Ada Steward"
KEYS = {name: SigningKey.generate() for name in ("north", "south", "west")}
BUNDLE = sha256_hex(b"bundle")


def a_study(
    *,
    id: str = "heart",
    rounds: int = 5,
    local_steps: int = 4,
    sites: Mapping[str, SigningKey] = KEYS,
    lead: SigningKey = LEAD,
    releases: int = 1,
    **dp: Any,
) -> StudySpec:
    """A small study; `dp` overrides single parameters of its plan."""
    plan: dict[str, Any] = {
        "kind": "dp-sgd",
        "epsilon": 2.0,
        "delta": 1e-4,
        "noise_multiplier": 3.0,
        "clip_norm": 1.0,
        "sampling_probability": 0.1,
        "steps": rounds * local_steps,
        "max_records_per_patient": 4,
    }
    column = {"name": "age", "type": "number", "unit": "years", "low": 0.0, "high": 120.0}
    return StudySpec.model_validate(
        {
            "id": id,
            "title": "A study for tests",
            "task": {"kind": "tabular-classification"},
            "model": {"name": "logistic-regression"},
            "data": {
                "kind": "tabular",
                "patient_key": "patient",
                "columns": [column, {**column, "name": "pressure"}],
                "label": {"column": "disease", "low": 0, "high": 1, "positive_from": 1},
                "split": {"kind": "hash", "salt": "s", "held_out": 0.3},
            },
            "dp": plan | dp,
            "training": {"learning_rate": 0.1},
            "aggregation": {"name": "fedavg"},
            "releases": [{"kind": "binned-scores", "bins": 5, "noise_multiplier": 20.0}] * releases,
            "rounds": rounds,
            "local_steps": local_steps,
            "quorum": 2,
            "deadline_seconds": 30.0,
            "sites": [
                {
                    "id": name,
                    "patients": 200,
                    "key_sha256": key_sha256(key.public_hex),
                    "node_key_sha256": sha256_hex(f"node of {name}".encode()),
                }
                for name, key in sites.items()
            ],
            "lead_key_sha256": key_sha256(lead.public_hex),
        }
    )


def signed(study: StudySpec, *, lead: SigningKey = LEAD) -> bytes:
    return SignedStudy.sign(study, lead).canonical


def stopping_study(**changes: Any) -> StudySpec:
    """`a_study` of five rounds that validates after the second and the fourth."""
    release = a_study().releases[0].model_dump(mode="json") | {
        "early_stopping": {"every": 2, "validations": 2, "patience": 1}
    }
    values = a_study(**changes).model_dump(mode="json") | {"releases": [release]}
    return StudySpec.model_validate(values)


def instruction(study: StudySpec, number: int = 1, **changes: Any) -> bytes:
    """A training instruction of round `number`; `changes` override single fields."""
    fields: dict[str, Any] = {
        "kind": "train",
        "study": study.digest,
        "round": number,
        "attempt": 0,
        "model_sha256": sha256_hex(f"model {number}".encode()),
        "cohort": [site.id for site in study.sites],
        "roster_sha256": study.roster_sha256,
    }
    return Instruction.model_validate(fields | changes).canonical


def update(value: float = 0.5) -> bytes:
    """A payload that fits `a_study`: two inputs, logistic regression."""
    return tensors_to_bytes(
        {
            name: np.full(shape, value, dtype=np.float32)
            for name, shape in update_shapes(a_study()).items()
        }
    )


def update_shapes(study: StudySpec) -> Mapping[str, tuple[int, ...]]:
    """The shapes that the model registry gives for `a_study`, without loading torch."""
    del study
    return {"linear.bias": (1,), "linear.weight": (1, 2)}


def counts(bins: int = 5) -> bytes:
    """An evaluation payload that fits `a_study`."""
    return canonical_json({"counts": [[1.5] * bins, [-0.5] * bins]})


def object_ids(envelope: Envelope) -> frozenset[str]:
    """Content ids of an envelope as a transport without Flower would name them."""
    parts = {b"header": envelope.header} | {
        b"blob." + name.encode(): blob for name, blob in envelope.blobs.items()
    }
    return frozenset(hashlib.sha256(name + b"|" + part).hexdigest() for name, part in parts.items())


@dataclass(frozen=True, kw_only=True)
class GuardSite:
    """The folder of a hospital and its settings."""

    folder: Path
    settings: SiteSettings

    @property
    def admin(self) -> GuardClient:
        return GuardClient(self.settings.admin_socket, timeout_seconds=30)

    @property
    def worker(self) -> GuardClient:
        return GuardClient(self.settings.worker_socket, timeout_seconds=30)

    @property
    def gateway(self) -> GuardClient:
        return GuardClient(self.settings.gateway_socket, timeout_seconds=30)


def statement(
    kind: str,
    *,
    site: str = "north",
    person: str = STEWARD_NAME,
    key: SigningKey = STEWARD,
    now: datetime | None = None,
    **facts: str,
) -> Statement:
    """What a person of the site signs; by default its one approver, now."""
    said = now or datetime.now(UTC)
    return Statement.sign(kind, {"site": site, **facts}, person=person, key=key, now=said)


def about(study: StudySpec, kind: str = "study-approval", **said: Any) -> Statement:
    """A statement about a study: by default its approval."""
    return statement(kind, study=study.digest, study_id=study.id, **said)


def site_values(*, site: str = "north", **policy: Any) -> dict[str, Any]:
    """The contents of a site.toml with one approver; nothing is approved by it."""
    return {
        "site": site,
        "federation": "tests.fedward",
        "coordinator": {"address": "127.0.0.1:9443"},
        "folders": {"state": "state", "run": "run"},
        "keys": {
            "tls_certificate": "keys/tls.crt",
            "tls_key": "keys/tls.key",
            "ca": "keys/ca.crt",
            "node_key": "keys/node.pem",
            "signing_key": "keys/signing.pem",
        },
        "data": [{"kind": "csv", "path": "patients.csv", "patient_key": "patient"}],
        "approvers": [{"name": STEWARD_NAME, "public_key": STEWARD.public_hex}],
        "policy": {
            "allowed_tasks": ["tabular-classification"],
            "min_noise": 0.5,
            "max_epsilon_per_study": 3.0,
            "max_epsilon_total": 6.0,
            "delta": 2e-4,
            "approved_bundles": [BUNDLE],
            "allow_evaluation": True,
            **policy,
        },
    }


def make_site(
    folder: Path,
    *studies: StudySpec,
    site: str = "north",
    top: Mapping[str, Any] | None = None,
    **policy: Any,
) -> GuardSite:
    """A hospital whose approver approved `studies`, with its keys and site.toml.

    `top` overrides keys outside its [policy].
    """
    (folder / "keys").mkdir(parents=True)
    write_signing_key(folder / "keys" / "signing.pem", KEYS[site])
    path = folder / "site.toml"
    path.write_text(tomli_w.dumps(site_values(site=site, **policy) | dict(top or {})))
    made = GuardSite(folder=folder, settings=load_site_settings(path))
    for study in studies:
        carry(made, about(study, site=site))
    return made


def carry(site: GuardSite, said: Statement) -> None:
    """Puts a statement where the guard finds it at its next start."""
    folder = site.settings.approvals_folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / f"{said.sha256}.json").write_bytes(said.canonical)
