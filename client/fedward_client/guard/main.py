"""The guard as a process: opens policy, ledger, journal and keys, then answers until ended."""

import importlib
import os
import pwd
import signal
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from fedward_client.adapters.key_files import read_signing_key
from fedward_client.adapters.sqlite_ledger import SqliteLedger
from fedward_client.guard.replies import Replies
from fedward_client.guard.server import Access, GuardServer, gateway_operations, worker_operations
from fedward_client.guard.service import GuardService
from fedward_client.policy import SitePolicy
from fedward_client.ports import ObjectIds, Shapes
from fedward_client.settings import SiteSettings
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.log.events import EventLog, read_events, utc_now
from fedward_common.privacy.ledger import Head
from fedward_common.study.spec import StudySpec
from fedward_common.study.tabular import TabularData

GATEWAY_BLOB_BYTES: Final = 0
PRUNE_SECONDS: Final = 300.0
REGISTRY: Final = "fedward_common.models.registry"


@dataclass(frozen=True, kw_only=True)
class RunningGuard:
    """A guard that answers on both sockets until `close`."""

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
) -> RunningGuard:
    """A guard that listens. Everything it needs is opened and verified first, in this order:

    1. the signing key: private to this user; 2. the journal: unbroken, nobody else writes it;
    3. the ledger: unbroken, not behind its mark, not behind what the journal noted; 4. the replies:
    every answer that the journal noted.

    Args:
        settings: the site's settings.
        object_ids: how the transport names the parts of an envelope; by default Flower's way.
        shapes: what an update of a study must look like; by default what the model registry says.

    Raises:
        FedwardError: the class says which of these is not as it must be; nothing listens then.
    """
    with ExitStack() as opened:
        service = _open_service(
            settings,
            opened=opened,
            object_ids=flower_object_ids() if object_ids is None else object_ids,
            shapes=study_shapes if shapes is None else shapes,
        )
        users, pid = settings.guard, os.getpid()
        rules = canonical_json(settings.policy.model_dump(mode="json"))
        service.log.append("guard.started", pid=pid, policy_sha256=sha256_hex(rules))
        opened.callback(service.log.append, "guard.stopped", pid=pid)
        worker = GuardServer(
            settings.worker_socket,
            worker_operations(service),
            access=Access(uids=frozenset({_uid(users.worker_user)}), group=users.group),
        )
        opened.callback(worker.close)
        gateway = GuardServer(
            settings.gateway_socket,
            gateway_operations(service),
            access=Access(uids=frozenset({_uid(users.gateway_user)}), group=users.group),
            max_blob_bytes=GATEWAY_BLOB_BYTES,
        )
        opened.callback(gateway.close)
        return RunningGuard(opened=opened.pop_all(), service=service)


def _open_service(
    settings: SiteSettings, *, opened: ExitStack, object_ids: ObjectIds, shapes: Shapes
) -> GuardService:
    """Steps 1 to 4 of `start_guard`; what must be closed again is registered with `opened`."""
    key = read_signing_key(settings.keys.signing_key)
    for folder in (settings.folders.state, settings.folders.run):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    noted, answered = noted_head(settings), _noted_answers(settings)
    log = EventLog(settings.audit_path)
    opened.callback(log.close)
    policy = SitePolicy.of(settings)
    ledger = SqliteLedger(settings.ledger_path, limits=policy.limits, clock=utc_now)
    opened.callback(ledger.close)
    ledger.require(noted)
    replies = Replies(
        settings.replies_folder,
        quota_bytes=settings.guard.reply_quota_bytes,
        keep_seconds=settings.guard.reply_hours * 3600,
        clock=utc_now,
    )
    replies.require(answered)
    return GuardService(
        site=SiteId(settings.site),
        policy=policy,
        ledger=ledger,
        replies=replies,
        log=log,
        key=key,
        shapes=shapes,
        object_ids=object_ids,
        clock=utc_now,
    )


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
    if shapes is None:
        # Torch takes seconds to load: done while nobody waits, after the sockets answer.
        threading.Thread(target=importlib.import_module, args=(REGISTRY,), daemon=True).start()
    try:
        # Also at a site that nobody asks anything any more.
        while not stop.wait(PRUNE_SECONDS):
            guard.service.forget_old()
    finally:
        guard.close()


def study_shapes(study: StudySpec) -> Mapping[str, tuple[int, ...]]:
    """The names and shapes of a study's tensors, from the model registry."""
    # Not at the top: it loads torch, and the guard's sockets must answer soon after its start.
    from fedward_common.models.registry import model_shapes  # noqa: PLC0415

    if not isinstance(study.data, TabularData):
        raise ConfigError(f"data.kind: expected tabular, found {study.data.kind!r}")
    return model_shapes(study.model, inputs=study.data.input_size)


def flower_object_ids() -> ObjectIds:
    """How Flower names the objects that carry an envelope."""
    # Imported here so that tests and tools that name objects otherwise need no Flower.
    from fedward_client.adapters.flower_records import object_ids  # noqa: PLC0415

    return object_ids


def noted_head(settings: SiteSettings) -> Head:
    """The last row of the ledger that the journal speaks of."""
    head = Head()
    for event in read_events(settings.audit_path):
        if "ledger_seq" in event.fields and "head_sha256" in event.fields:
            head = Head(seq=event.fields["ledger_seq"], sha256=event.fields["head_sha256"])
    return head


def _noted_answers(settings: SiteSettings) -> frozenset[str]:
    """The slots that the journal says were answered, named as `Instruction.slot` names them."""
    return frozenset(
        f"{event.fields['study']}/{event.fields['kind']}/{event.fields['round']}"
        for event in read_events(settings.audit_path)
        if event.action == "reply.sealed"
    )


def _uid(user: str | None) -> int:
    if user is None:
        return os.geteuid()
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError as error:
        raise ConfigError(
            f"[guard]: expected a user of this machine, found {user!r}. Create it or remove the key"
        ) from error
