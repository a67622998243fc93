"""The guard as a process: opens policy, ledger, journal and keys, then answers until ended."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from fedward_client.adapters.key_files import read_passphrase, read_signing_key
from fedward_client.adapters.sqlite_ledger import SqliteLedger
from fedward_client.approvals import Standing
from fedward_client.guard.admission import ExclusionWatch
from fedward_client.guard.memory import remembered
from fedward_client.guard.plugins import approved_plugin
from fedward_client.guard.replies import Replies
from fedward_client.guard.server import (
    Access,
    GuardServer,
    admin_operations,
    gateway_operations,
    worker_operations,
    worker_spool,
)
from fedward_client.guard.service import GuardService
from fedward_client.guard.shelf import StudyShelf
from fedward_client.guard.statements import Statements, load_noted
from fedward_client.guard.states import States
from fedward_client.guard.traffic import Traffic
from fedward_client.policy import SitePolicy
from fedward_client.ports import Clock, ObjectIds, Shapes
from fedward_client.settings import SiteSettings
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import LedgerError
from fedward_common.ids import SiteId
from fedward_common.log.events import EventLog, utc_now
from fedward_common.privacy.ledger_values import Head
from fedward_common.processes import AWAKE_SECONDS
from fedward_common.study.inputs import input_size
from fedward_common.study.signed import MAX_STUDY_BYTES
from fedward_common.study.spec import StudySpec
from fedward_common.trust.private_files import remove_drafts
from fedward_common.trust.statements import MAX_STATEMENT_BYTES
from fedward_common.users import user_id

GATEWAY_BLOB_BYTES: Final = 0
ADMIN_BLOB_BYTES: Final = MAX_STATEMENT_BYTES + MAX_STUDY_BYTES
ROOT: Final = 0
PRUNE_SECONDS: Final = 300.0


@dataclass(frozen=True, kw_only=True)
class RunningGuard:
    """A guard that answers on its sockets until `close`."""

    opened: ExitStack
    service: GuardService

    def close(self) -> None:
        """Stops answering, then closes ledger and journal."""
        self.opened.close()


def start_guard(
    settings: SiteSettings,
    *,
    object_ids: ObjectIds | None = None,
    shapes: Shapes | None = None,
    clock: Clock = utc_now,
) -> RunningGuard:
    """A guard that listens. Everything it needs is opened and verified first, in this order:

    1. the signing key: private to this user; 2. the journal: unbroken, nobody else writes it;
    3. the ledger: unbroken, not behind its mark, not behind what the journal noted; 4. the replies:
    every answer that the journal noted; 5. the statements of people: every one that the journal
    noted, and new ones by approvers only.

    Args:
        settings: the site's settings.
        object_ids: how the transport names the parts of an envelope; by default Flower's way.
        shapes: what an update of a study must look like; by default what the model registry says.
        clock: the time, for ethics, hours and how long replies are kept.

    Raises:
        FedwardError: the class says which of these is not as it must be; nothing listens then.
    """
    with ExitStack() as opened:
        service = _open_service(
            settings,
            opened=opened,
            object_ids=flower_object_ids() if object_ids is None else object_ids,
            shapes=study_shapes if shapes is None else shapes,
            clock=clock,
        )
        for server in _listen(settings, service):
            opened.callback(server.close)
        return RunningGuard(opened=opened.pop_all(), service=service)


def _listen(settings: SiteSettings, service: GuardService) -> Iterator[GuardServer]:
    """The guard's sockets, one after the other: for the worker, the gateway and people."""
    users = settings.guard
    people = frozenset({_uid(users.admin_user), os.geteuid(), ROOT})
    yield GuardServer(
        settings.worker_socket,
        worker_operations(service),
        access=Access(uids=frozenset({_uid(users.worker_user)}), group=users.group),
        spool=worker_spool(service),
    )
    yield GuardServer(
        settings.admin_socket,
        admin_operations(service),
        access=Access(uids=people, group=users.group),
        max_blob_bytes=ADMIN_BLOB_BYTES,
    )
    # Last: whoever starts the site takes this one's answer for the guard's.
    yield GuardServer(
        settings.gateway_socket,
        gateway_operations(service),
        access=Access(uids=frozenset({_uid(users.gateway_user)}), group=users.group),
        max_blob_bytes=GATEWAY_BLOB_BYTES,
    )


def _open_service(
    settings: SiteSettings,
    *,
    opened: ExitStack,
    object_ids: ObjectIds,
    shapes: Shapes,
    clock: Clock,
) -> GuardService:
    """Steps 1 to 5 of `start_guard`; what must be closed again is registered with `opened`."""
    passphrase = read_passphrase(settings.keys.passphrase_file)
    key = read_signing_key(settings.keys.signing_key, passphrase=passphrase)
    for folder in (settings.folders.state, settings.folders.run):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    memory = remembered(settings.audit_path)
    log = EventLog(settings.audit_path)
    opened.callback(log.close)
    for folder in (settings.replies_folder, settings.approvals_folder, settings.studies_folder):
        remove_drafts(folder)  # a guard that held the journal's lock was killed in mid-write
    standing = Standing(site=settings.site, approvers=settings.approvers)
    policy = SitePolicy.of(settings, standing)
    ledger = SqliteLedger(settings.ledger_path, limits=policy.limits, clock=utc_now)
    opened.callback(ledger.close)
    ledger.require(memory.head)
    _require_journal(settings, ledger, events=memory.events)
    replies = Replies(
        settings.replies_folder,
        quota_bytes=settings.guard.reply_quota_bytes,
        keep_seconds=settings.guard.reply_hours * 3600,
        clock=clock,
    )
    replies.require(frozenset(memory.answered))
    _note_start(settings, log, opened=opened)
    statements = Statements(
        folder=settings.approvals_folder, standing=standing, log=log, clock=clock
    )
    statements.load(memory.statements)
    return GuardService(
        site=SiteId(settings.site),
        policy=policy,
        ledger=ledger,
        replies=replies,
        log=log,
        key=key,
        shapes=shapes,
        object_ids=object_ids,
        clock=clock,
        statements=statements,
        shelf=StudyShelf(
            folder=settings.studies_folder,
            approved=lambda digest: standing.approval(digest) is not None,
        ),
        traffic=Traffic(
            rules=settings.policy,
            clock=clock,
            of_round=memory.bytes_of_round,
            of_day=memory.bytes_of_day,
        ),
        exclusions=ExclusionWatch(settings, log, key=key, noted=memory.exclusions_sha256).look,
        plugin=lambda study: approved_plugin(study, standing),
        states=States(folder=settings.folders.state / "site-state"),
        unmasked=set(memory.unmasked),
    )


def _require_journal(settings: SiteSettings, ledger: SqliteLedger, *, events: int) -> None:
    """Returns when the ledger has its journal, whose first line stands before the first study.

    Raises:
        LedgerError: without the journal nobody knows which revocations there were.
    """
    if not events and ledger.head().seq > 1:
        raise LedgerError(
            f"journal {settings.audit_path}: expected the one that goes with the ledger, found "
            "none or an empty one. Restore the newest copy"
        )


def _note_start(settings: SiteSettings, log: EventLog, *, opened: ExitStack) -> None:
    """Writes that the guard started, under which rules and approvers, and later that it ended."""
    rules = {
        "policy": settings.policy.model_dump(mode="json"),
        "approvers": [approver.model_dump(mode="json") for approver in settings.approvers],
    }
    log.append("guard.started", pid=os.getpid(), policy_sha256=sha256_hex(canonical_json(rules)))
    opened.callback(log.append, "guard.stopped", pid=os.getpid())


def run_guard(
    settings: SiteSettings,
    *,
    object_ids: ObjectIds | None = None,
    shapes: Shapes | None = None,
) -> None:
    """Runs the guard until SIGTERM or SIGINT; the entry point of its process.

    Raises:
        FedwardError: as `start_guard`.
    """
    os.umask(0o077)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    guard = start_guard(settings, object_ids=object_ids, shapes=shapes)
    try:
        # Also at a site that nobody asks anything any more.
        pruned = time.monotonic()
        while not stop.wait(AWAKE_SECONDS):
            if time.monotonic() - pruned >= PRUNE_SECONDS:
                guard.service.forget_old()
                pruned = time.monotonic()
    finally:
        guard.close()


def study_shapes(study: StudySpec) -> Mapping[str, tuple[int, ...]]:
    """The names and shapes of a study's tensors, as it writes them out.

    Studies signed before 2026-11-27 write out those of plugins only: the registry builds theirs.
    """
    if study.model.tensors:
        return {tensor.name: tensor.shape for tensor in study.model.tensors}
    # Not at the top: it loads torch, for which a guard has no other use.
    from fedward_common.models.registry import model_shapes  # noqa: PLC0415

    return model_shapes(study.model, inputs=input_size(study.data))


def flower_object_ids() -> ObjectIds:
    """How Flower names the objects that carry an envelope."""
    # Imported here so that tests and tools that name objects otherwise need no Flower.
    from fedward_client.adapters.flower_records import object_ids  # noqa: PLC0415

    return object_ids


def noted_head(settings: SiteSettings) -> Head:
    """The last row of the ledger that the journal speaks of."""
    return remembered(settings.audit_path).head


def policy_of(settings: SiteSettings) -> SitePolicy:
    """The site's policy with the statements that are in force, read from its files.

    Raises:
        FedwardError: journal or statements are not as they must be.
    """
    standing = Standing(site=settings.site, approvers=settings.approvers)
    noted = remembered(settings.audit_path).statements
    for data in load_noted(settings.approvals_folder, standing, noted):
        statement = standing.check(data)
        standing.accept(statement, at=statement.time)
    return SitePolicy.of(settings, standing)


def _uid(user: str | None) -> int:
    return os.geteuid() if user is None else user_id(user, key="[guard]")
