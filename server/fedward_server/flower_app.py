"""The installed ServerApp: what the code-free bundle names and the coordinator runs.

An entry point: an error of ours becomes the run's outcome with its exit code; anything else ends
this process only, is named by its type, and the run goes on in the next.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedward_common.arrays import tensor_parts
from fedward_common.errors import FedwardError
from fedward_common.ids import SiteId
from fedward_common.models.plugins import register_installed
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_server.adapters.blob_link import BlobLink, BlobTray
from fedward_server.adapters.edge_kick import ReplyLine, kick
from fedward_server.adapters.flower_grid import FlowerFleet
from fedward_server.adapters.ledger_heads import HeadsFile
from fedward_server.adapters.phase_link import PhaseLink
from fedward_server.adapters.registry import SqlRegistry, open_registry
from fedward_server.adapters.reply_pulls import quicken
from fedward_server.adapters.run_files import RunFolder, SystemClock, read_study, run_path
from fedward_server.adapters.start_weights import read_start_weights
from fedward_server.blob_fleet import BlobFleet
from fedward_server.fleet import Fleet
from fedward_server.members import is_named_member
from fedward_server.phase_fleet import PHASE_SECONDS, PhaseFleet
from fedward_server.settings import CoordinatorSettings, load_coordinator_settings
from fedward_server.study_run import StudyRun

SETTINGS_VARIABLE: Final = "FEDWARD_COORDINATOR_SETTINGS"
"""Names the coordinator.toml for the ServerApp; set by `fedward-server serve`, not by a person."""

app = ServerApp()
_log = structlog.get_logger(__name__)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the study that the run's configuration names and writes its outcome."""
    settings = load_coordinator_settings(Path(os.environ[SETTINGS_VARIABLE]))
    folder = RunFolder(run_path(settings.state, str(context.run_config["run"])))
    try:
        _run(grid, settings, folder, digest=str(context.run_config["study"]))
    except FedwardError as error:
        if isinstance(error.__cause__, OSError):  # a full disk, a socket: another day it works
            folder.interrupted(error)
        else:
            folder.emit("run.failed", code=error.code)
            folder.fail(code=error.code, exit_code=error.exit_code, message=str(error))
        raise
    except Exception as error:
        # SuperLink died, memory was short: the next Flower run goes on (`continuation`).
        folder.interrupted(error)
        raise


def _run(grid: Grid, settings: CoordinatorSettings, folder: RunFolder, *, digest: str) -> None:
    signed = read_study(settings.state, digest)
    study = SignedStudy.parse(signed).verify()
    register_installed(study.model.name)
    folder.emit("run.started", study=study.digest, rounds=study.rounds)
    registry = open_registry(settings.database)
    blobs = BlobLink(settings.blob_socket, folder=settings.blob_folder)
    member = partial(is_named_member, registry, study)
    with closing(blobs), _fleet(grid, settings, study, member=member) as messages:
        fleet = BlobFleet(study=study, fleet=messages, blobs=blobs, clock=time.monotonic)
        result = StudyRun(
            study=study,
            signed_study=signed,
            fleet=fleet,
            clock=SystemClock(),
            store=folder,
            events=folder,
            heads=HeadsFile(settings.state),
            site_keys=_site_keys(registry, study),
            tray=BlobTray(settings.blob_folder),
            start_weights=read_start_weights(settings.state, study),
        ).run()
    folder.emit("run.finished", study=study.digest, rounds=result.committed_rounds)
    folder.finish(
        model=tensor_parts(result.model),
        counts={site: counts.tolist() for site, counts in result.counts.items()},
        facts={"study": study.digest, **result.facts},
    )


def _site_keys(registry: SqlRegistry, study: StudySpec) -> dict[SiteId, str]:
    """The Ed25519 keys of the study's sites as the registry has them; checked by their digests."""
    found = {SiteId(site.id): registry.find(SiteId(site.id)) for site in study.sites}
    return {site: record.signing_public_key for site, record in found.items() if record}


@contextmanager
def _fleet(
    grid: Grid,
    settings: CoordinatorSettings,
    study: StudySpec,
    *,
    member: Callable[[SiteId], bool],
) -> Iterator[Fleet]:
    """The study's sites by messages, and by the stream of a phase where the study streams."""
    quicken()
    with ExitStack() as opened:

        def made(ttl_seconds: float | None = None) -> FlowerFleet:
            """A fleet with its own line to the edge: what one hears the other would miss."""
            line = opened.enter_context(closing(ReplyLine(settings.kick_socket)))
            fleet = FlowerFleet(
                grid,
                study=study,
                kick=partial(kick, settings.kick_socket),
                member=member,
                ttl_seconds=ttl_seconds,
                heard=line.heard,
            )
            return opened.enter_context(closing(fleet))

        yield from _by_messages_or_streams(settings, study, made, member=member)


def _by_messages_or_streams(
    settings: CoordinatorSettings,
    study: StudySpec,
    made: Callable[..., FlowerFleet],
    *,
    member: Callable[[SiteId], bool],
) -> Iterator[Fleet]:
    if not study.streams:
        yield made()
        return
    link = PhaseLink(settings.phase_socket)
    phases = PhaseFleet(
        study=study,
        messages=made(),
        openings=made(ttl_seconds=PHASE_SECONDS),
        link=link,
        clock=time.monotonic,
        member=member,
    )
    with closing(link):  # whatever ends the run ends the phase at every site
        yield phases
        phases.end()
