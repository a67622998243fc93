"""The installed ClientApp: what the code-free bundle names and a hospital's worker runs.

An entry point: the one place of the worker where any exception is caught. It is logged by its type
only and leaves as the refusal `internal`, so that no text of an error reaches the coordinator.
"""

import os
from functools import cache, partial
from pathlib import Path
from typing import Final

import structlog
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedward_client.adapters.flower_records import from_records, to_records
from fedward_client.blobs import with_fetched
from fedward_client.data.site import SiteSource
from fedward_client.exclusions import excluded_patients
from fedward_client.guard.client import GuardClient
from fedward_client.phase import opens_phase, serve_phase
from fedward_client.settings import SiteSettings, load_site_settings
from fedward_client.train_round import Worker
from fedward_client.training.trainer import PerformanceFlags
from fedward_common.wire import Envelope

SETTINGS_VARIABLE: Final = "FEDWARD_SITE_SETTINGS"
"""Names the site.toml for the worker's children; set by `fedward-client worker`, not by hand."""

app = ClientApp()
_log = structlog.get_logger(__name__)


@cache
def site_worker() -> Worker:
    """The worker of this site, built once per process from its settings file."""
    settings = site_settings()
    return Worker(
        guard=GuardClient(settings.worker_socket),
        source=SiteSource(settings, excluded=partial(excluded_patients, settings)),
        flags=PerformanceFlags(
            device=settings.device,
            backend=settings.backend,
            max_records_per_chunk=settings.max_records_per_chunk,
            precision=settings.precision,
            replicas=settings.replicas,
        ),
    )


@cache
def site_settings() -> SiteSettings:
    """The settings of this site, read once per process."""
    return load_site_settings(Path(os.environ[SETTINGS_VARIABLE]))


def _answer(envelope: Envelope) -> Envelope:
    worker = site_worker()
    try:
        path = site_settings().phase_socket
        return worker.answer(with_fetched(envelope, socket_path=path))
    except Exception as error:  # noqa: BLE001 - entry point: see the module's docstring
        _log.error("worker.failed", error=type(error).__name__)
        return worker.guard.refuse(envelope.header, "internal")


def _reply(message: Message) -> Message:
    envelope = from_records(message.content)
    answer = _answer(envelope)
    if opens_phase(answer):
        serve_phase(envelope, _answer, socket_path=site_settings().phase_socket)
    return Message(to_records(answer), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """The sealed answer to a training instruction."""
    del context
    return _reply(message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The sealed answer to an evaluation instruction."""
    del context
    return _reply(message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """The sealed answer to a statistics instruction, or to one that opens a phase."""
    del context
    return _reply(message)
