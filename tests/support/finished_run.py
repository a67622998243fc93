"""A coordinator's state folder with a run that finished, made in milliseconds by its own code."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedward_common.arrays import Array, tensors_to_bytes
from fedward_common.study.files import SiteKeys
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.trust.private_files import write_atomically
from fedward_common.trust.signing import SigningKey, key_sha256
from fedward_server.adapters.run_files import RunFolder, StartedRun, run_path, study_path
from fedward_server.progress import Progress
from tests.support.pki import Site
from tests.support.studies import make_document

TENSORS = {"linear.weight": np.ones((1, 3), np.float32), "linear.bias": np.zeros(1, np.float32)}


def round_model(number: int) -> dict[str, Array]:
    """The model after a round of the finished run."""
    return {"w": np.full(2, number, dtype=np.float32)}


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What was signed, and the run's name."""

    state: Path
    name: str
    study: StudySpec
    signed: SignedStudy
    lead: SigningKey


def keys_of(*sites: Site) -> dict[str, SiteKeys]:
    return {
        site.site_id: SiteKeys(
            key_sha256=site.record.key_sha256, node_key_sha256=site.record.node_key_sha256
        )
        for site in sites
    }


def signed_study(lead: SigningKey, *sites: Site, **changes: object) -> SignedStudy:
    """A valid study of these sites with their own keys."""
    names = [site.site_id for site in sites]
    document = make_document(sites=names, keys=keys_of(*sites), **changes)
    document["lead_key_sha256"] = key_sha256(lead.public_hex)
    return SignedStudy.sign(StudySpec.model_validate(document), lead)


def finished_run(
    state: Path, *sites: Site, name: str = "made-up-0001", lead: SigningKey | None = None
) -> FinishedRun:
    """A run of three rounds, all committed, as a ServerApp leaves it."""
    lead = lead or SigningKey.generate()
    signed = signed_study(lead, *sites)
    study = signed.verify()
    path = study_path(state, study.digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, signed.canonical)
    start(state, study, name=name)
    folder = open_run(state, study, name=name, rounds=range(1, 4))
    folder.emit("run.finished", study=study.digest, rounds=3)
    folder.finish(
        model=tensors_to_bytes(TENSORS),
        counts={},
        facts={
            "study": study.digest,
            "committed_rounds": 3,
            "abandoned_rounds": 0,
            "refusals": {},
        },
    )
    return FinishedRun(state=state, name=name, study=study, signed=signed, lead=lead)


def start(state: Path, study: StudySpec, *, name: str, flower_id: int = 17) -> StartedRun:
    run = StartedRun(
        name=name,
        study=study.digest,
        study_id=study.id,
        flower_id=flower_id,
        started_at="2027-01-01T00:00:00+00:00",
    )
    run.write(state)
    return run


def open_run(state: Path, study: StudySpec, *, name: str, rounds: Sequence[int]) -> RunFolder:
    """The run's folder after these rounds; its log is open."""
    folder, names = RunFolder(run_path(state, name)), [site.id for site in study.sites]
    folder.emit("run.started", study=study.digest, rounds=study.rounds)
    for number in rounds:
        folder.emit("round.opened", kind="train", round=number, rounds=study.rounds, sites=names)
        for site in names:
            folder.emit("site.replied", kind="train", round=number, site=site)
        model = round_model(number)
        folder.checkpoint(
            Progress(study=study.digest, next_round=number + 1, committed=number, model=model)
        )
        folder.emit("round.committed", round=number, sites=names)
    return folder
