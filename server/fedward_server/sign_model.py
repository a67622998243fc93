"""The study lead's signature under a finished model: only then may the sites fetch it."""

import time
from pathlib import Path
from typing import Any, Final

from fedward_common.arrays import tensors_from_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError, SignatureRefused, StartError
from fedward_common.log.events import EventLog, read_events, verify
from fedward_common.model_package import MANIFEST
from fedward_common.privacy import accounting, mechanism
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.statistics import is_statistics
from fedward_common.trust.signing import SigningKey
from fedward_server.adapters.model_package import Origin, write_package
from fedward_server.adapters.run_files import LOG, MODEL, read_outcome, read_study, run_path
from fedward_server.models import package_path
from fedward_server.run_card import run_card

LOG_SECONDS: Final = 10.0
"""How long the ServerApp's process may take to let go of the run's log."""


def sign_model(state: Path, run: str, *, key: SigningKey) -> dict[str, Any]:
    """The manifest of the run's model package, which sites may fetch when this returns.

    1. the run finished and has a model; 2. its study is verified and `key` is its lead's; 3. the
    log of the run is an unbroken chain and names the digest of the model that lies there; 4. the
    package is written, signed, with the rounds, sites and digests of the log as its lineage; 5. the
    manifest's digest is an event of the run's log.

    Raises:
        ConfigError: 1 does not hold. SignatureRefused: 2 or 3. LedgerError: the log was changed.
    """
    # 1.
    folder = run_path(state, run)
    outcome = read_outcome(folder)
    if outcome is None or outcome["status"] != "finished" or not (folder / MODEL).exists():
        raise ConfigError(
            f"run {run}: expected a finished run with a model, found "
            f"{'none yet' if outcome is None else outcome['status']}"
        )
    # 2.
    signed_study = read_study(state, outcome["study"])
    study = SignedStudy.parse(signed_study).verify()
    if is_statistics(study):
        raise ConfigError(f"run {run}: expected a study with a model, found one of statistics")
    if SignedStudy.parse(signed_study).lead_public_key != key.public_hex:
        raise SignatureRefused(
            f"run {run}: expected the key of the lead of study {study.id}, found another"
        )
    # 3.
    model, lineage = (folder / MODEL).read_bytes(), _lineage(folder, run)
    if lineage["model_sha256"] != sha256_hex(model):
        raise SignatureRefused(
            f"run {run}: expected the model whose digest the log holds, found another"
        )
    # 4.
    epsilon = declared_epsilon(study)
    target = package_path(state, run)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    manifest = write_package(
        target,
        study=study,
        model=tensors_from_bytes(model),
        card=run_card(study, run=run, outcome=outcome, epsilon=epsilon),
        epsilon=dict.fromkeys((site.id for site in study.sites), epsilon),
        key=key,
        origin=Origin(signed_study=signed_study, lineage=lineage),
    )
    # 5.
    _note(
        folder / LOG,
        run=run,
        study=study.digest,
        model_sha256=manifest["model_sha256"],
        sha256=sha256_hex((target / MANIFEST).read_bytes()),
        key_sha256=study.lead_key_sha256,
    )
    return manifest


def declared_epsilon(study: StudySpec) -> float:
    """What the whole study costs a patient by admission: every round and release at T_max."""
    if not isinstance(study.dp, DpSgd):
        raise ConfigError(f"study {study.id}: expected a plan of DP-SGD, found {study.dp.kind!r}")
    return accounting.epsilon_admission([mechanism.study_event(study)], delta=study.dp.delta)


def _lineage(folder: Path, run: str) -> dict[str, Any]:
    """The rounds of a run out of its log: sites, the digest of the model after each, the last."""
    head = verify(folder / LOG).head_sha256
    rounds: dict[int, dict[str, Any]] = {}
    final = ""
    for event in read_events(folder / LOG):
        fields = event.fields
        if event.action == "round.committed":
            entry = rounds.setdefault(fields["round"], {"round": fields["round"]})
            entry["sites"] = fields["sites"]
        elif event.action == "model.checkpoint":
            entry = rounds.setdefault(fields["round"], {"round": fields["round"]})
            entry["model_sha256"] = fields["model_sha256"]
        elif event.action == "model.final":
            final = fields["model_sha256"]
    return {
        "run": run,
        "rounds": [rounds[number] for number in sorted(rounds)],
        "model_sha256": final,
        "log_sha256": head,
    }


def _note(path: Path, **fields: object) -> None:
    """Adds `model.signed` to a run's log as soon as the ServerApp's process has let go of it."""
    limit = time.monotonic() + LOG_SECONDS
    while True:
        try:
            log = EventLog(path)
        except StartError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.2)
            continue
        log.append("model.signed", **fields)
        log.close()
        return
