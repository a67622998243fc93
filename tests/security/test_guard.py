"""Attacks on the guard through its real sockets, and kill -9 of its real process."""

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from fedward_client.budget import budget_report
from fedward_client.guard.client import Grant, GuardClient, StoredReply
from fedward_client.guard.main import RunningGuard, start_guard
from fedward_client.guard.server import Access, GuardServer
from fedward_client.policy import NotApproved, Paused
from fedward_client.ports import Passing
from fedward_common.arrays import tensors_to_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import (
    ConfigError,
    DataError,
    FedwardError,
    LedgerError,
    PolicyRefused,
    ProtocolError,
    SignatureRefused,
    StartError,
)
from fedward_common.log.events import read_events, verify
from fedward_common.trust.signing import SigningKey
from fedward_common.wire import Envelope
from tests.support.guard_site import (
    BUNDLE,
    KEYS,
    STEWARD_NAME,
    GuardSite,
    a_study,
    about,
    carry,
    counts,
    instruction,
    make_site,
    object_ids,
    signed,
    statement,
    update,
)

STUDY = a_study()
ROOT = Path(__file__).parents[2]
LONG_STUDY = a_study(id="long", rounds=200, local_steps=1, noise_multiplier=6.0)


@pytest.fixture
def site(tmp_path: Path) -> GuardSite:
    return make_site(tmp_path, STUDY)


@pytest.fixture
def guard(site: GuardSite) -> Iterator[RunningGuard]:
    running = start_guard(site.settings, object_ids=object_ids)
    yield running
    running.close()


def receipt(site: GuardSite, number: int = 1, **changes: Any) -> str:
    grant = site.worker.begin(instruction(STUDY, number, **changes), signed(STUDY))
    assert isinstance(grant, Grant)
    return grant.receipt


def charges(site: GuardSite) -> int:
    return sum(
        study["rounds_charged"] + study["releases_charged"]
        for study in budget_report(site.settings)["studies"]
    )


def passing(sha256: str, *, kind: str = "object") -> Passing:
    return Passing(direction="out", route="push-object", kind=kind, sha256=sha256, bytes=12)


def released(site: GuardSite, envelope: Envelope, message_id: str = "message-1") -> bool:
    return site.gateway.release(message_id, sorted(object_ids(envelope)))


@pytest.mark.usefixtures("guard")
def test_the_good_site_passes(site: GuardSite) -> None:
    envelope = site.worker.seal(receipt(site), update())

    assert released(site, envelope)
    assert site.gateway.bundle_allowed(BUNDLE)
    site.gateway.journal(passing("1" * 64, kind="hello"))
    assert charges(site) == 1
    assert site.worker.begin(instruction(STUDY), signed(STUDY)) == StoredReply(envelope=envelope)
    evaluation = site.worker.seal(receipt(site, 5, kind="evaluate"), counts())
    assert released(site, evaluation)
    assert charges(site) == 2


@pytest.mark.usefixtures("guard")
def test_the_sockets_are_for_the_guards_user_alone(site: GuardSite) -> None:
    settings = site.settings
    for path in (settings.worker_socket, settings.gateway_socket, settings.admin_socket):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_wrong_uid_is_refused(tmp_path: Path) -> None:
    """Where the tests may change users, by a process of another user that the file lets in."""
    asked: list[str] = []

    def release(frame: object) -> Any:
        asked.append("release")
        raise ProtocolError("never reached")

    path = tmp_path / "gateway.sock"
    root = os.getuid() == 0
    allowed = frozenset({os.getuid() if root else os.getuid() + 1})
    server = GuardServer(path, {"release": release}, access=Access(uids=allowed))
    if root:
        path.chmod(0o666)
        tmp_path.chmod(0o711)

    def ask() -> str:
        try:
            GuardClient(Path(path.name), timeout_seconds=10).release("m", ["0"])
        except FedwardError as error:
            return f"{type(error).__name__}: {error}"
        return "answered"

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(tmp_path)
            if root:
                os.setgid(65534)
                os.setuid(65534)
            os.write(write, ask().encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    answer = os.read(read, 4096).decode()
    os.close(read)
    server.close()

    assert answer.startswith("PolicyRefused: guard: expected user")
    assert asked == []


@pytest.mark.usefixtures("guard")
def test_no_receipt_no_seal(site: GuardSite) -> None:
    receipt(site)

    for forged in ("0" * 64, "", "a", "0" * 63 + "g"):
        with pytest.raises(ProtocolError):
            site.worker.seal(forged, update())


@pytest.mark.usefixtures("guard")
def test_nothing_leaves_without_a_sealed_reply(site: GuardSite) -> None:
    receipt(site)
    own = Envelope(header=b"anything", blobs={"payload": update()})

    assert not released(site, own)
    assert not site.gateway.release("m", ["0" * 64])


@pytest.mark.usefixtures("guard")
def test_a_changed_envelope_does_not_leave(site: GuardSite) -> None:
    envelope = site.worker.seal(receipt(site), update())

    for changed in (
        Envelope(header=envelope.header, blobs={"payload": update(0.75)}),
        Envelope(header=envelope.header + b" ", blobs=envelope.blobs),
        Envelope(header=envelope.header, blobs=envelope.blobs | {"more": b"rows"}),
        Envelope(header=envelope.header),
    ):
        assert not released(site, changed)
    assert released(site, envelope)


@pytest.mark.usefixtures("guard")
def test_used_receipt_seals_nothing_more_and_its_reply_leaves_in_one_message(
    site: GuardSite,
) -> None:
    used = receipt(site)
    envelope = site.worker.seal(used, update())

    with pytest.raises(ProtocolError, match="receipt"):
        site.worker.seal(used, update(0.25))
    assert released(site, envelope, "message-1")
    assert released(site, envelope, "message-1")
    assert not released(site, envelope, "message-2")


def forged_payloads() -> dict[str, bytes]:
    weight = np.zeros((1, 2), dtype=np.float32)
    bias = np.zeros((1,), dtype=np.float32)
    good = {"linear.weight": weight, "linear.bias": bias}
    return {
        "empty": b"",
        "no tensors": tensors_to_bytes({}),
        "a table of rows": b"age,pressure\n63,145\n",
        "another shape": tensors_to_bytes(good | {"linear.weight": np.zeros((9, 2), np.float32)}),
        "another name": tensors_to_bytes({"rows": weight, "linear.bias": bias}),
        "one more tensor": tensors_to_bytes(good | {"rows": weight}),
        "one tensor less": tensors_to_bytes({"linear.weight": weight}),
        "float64": save({name: array.astype(np.float64) for name, array in good.items()}),
        "not finite": tensors_to_bytes(good | {"linear.bias": np.array([np.nan], np.float32)}),
        "notes in the header": save(good, metadata={"rows": "63,145"}),
        "bytes after the end": tensors_to_bytes(good) + b"63,145",
    }


@pytest.mark.usefixtures("guard")
def test_forged_payload_shape_is_not_sealed(site: GuardSite) -> None:
    """The model's shapes come from the real registry here."""
    live = receipt(site)

    for name, payload in forged_payloads().items():
        with pytest.raises(ProtocolError):
            pytest.fail(f"sealed: {name} {site.worker.seal(live, payload)}")
    site.worker.seal(live, update())


@pytest.mark.usefixtures("guard")
def test_wrong_key_of_the_lead_is_refused(site: GuardSite) -> None:
    other = SigningKey.generate()
    forged = signed(STUDY).replace(
        signed(STUDY)[signed(STUDY).index(b'"signature":"') + 13 :][:16], b"0" * 16
    )

    with pytest.raises(SignatureRefused):
        site.worker.begin(instruction(STUDY), forged)
    # Another lead's study of the same contents is another digest, which nobody approved.
    theirs = a_study(lead=other)
    with pytest.raises(PolicyRefused):
        site.worker.begin(instruction(theirs), signed(theirs, lead=other))
    assert charges(site) == 0


def test_wrong_key_of_the_site_is_refused(tmp_path: Path) -> None:
    study = a_study(sites=KEYS | {"north": SigningKey.generate()})
    site = make_site(tmp_path, study)
    running = start_guard(site.settings, object_ids=object_ids)

    with pytest.raises(SignatureRefused, match="this guard's key"):
        site.worker.begin(instruction(study), signed(study))

    running.close()
    assert charges(site) == 0


def test_a_study_without_this_site_is_refused(tmp_path: Path) -> None:
    study = a_study(sites={name: KEYS[name] for name in ("south", "west")})
    site = make_site(tmp_path, study)
    running = start_guard(site.settings, object_ids=object_ids)

    with pytest.raises(ProtocolError, match="expected site north"):
        site.worker.begin(instruction(study), signed(study))

    running.close()


@pytest.mark.usefixtures("guard")
def test_other_study_under_an_approved_digest_is_refused(site: GuardSite) -> None:
    other = a_study(id="lung")

    with pytest.raises(ProtocolError, match="signed study it names"):
        site.worker.begin(instruction(STUDY), signed(other))
    with pytest.raises(ProtocolError):
        site.worker.begin(instruction(STUDY), b"")
    with pytest.raises(ProtocolError, match="roster"):
        site.worker.begin(instruction(STUDY, roster_sha256="0" * 64), signed(STUDY))
    assert charges(site) == 0


@pytest.mark.usefixtures("guard")
@pytest.mark.parametrize(
    "cohort",
    [["south", "west"], ["north", "north"], ["north", "east"], ["south"]],
    ids=["without us", "twice", "with a stranger", "alone without us"],
)
def test_impossible_cohort_is_refused(site: GuardSite, cohort: list[str]) -> None:
    with pytest.raises(ProtocolError, match="cohort"):
        site.worker.begin(instruction(STUDY, cohort=cohort), signed(STUDY))

    assert charges(site) == 0


@pytest.mark.usefixtures("guard")
def test_changed_cohort_for_a_charged_round_is_refused(site: GuardSite) -> None:
    """A coordinator that starts a round again with fewer sites gets no second answer."""
    envelope = site.worker.seal(receipt(site), update())

    with pytest.raises(ProtocolError):
        site.worker.begin(instruction(STUDY, cohort=["north", "south"]), signed(STUDY))
    with pytest.raises(ProtocolError):
        site.worker.begin(instruction(STUDY, attempt=1), signed(STUDY))
    assert charges(site) == 1
    assert released(site, envelope)


@pytest.mark.usefixtures("guard")
def test_unapproved_study_is_refused(site: GuardSite) -> None:
    study = a_study(id="lung")

    with pytest.raises(
        NotApproved, match=f"nobody of this site approved its digest {study.digest}"
    ):
        site.worker.begin(instruction(study), signed(study))

    assert charges(site) == 0


@pytest.mark.usefixtures("guard")
def test_round_beyond_t_max_is_refused(site: GuardSite) -> None:
    for number in range(1, STUDY.rounds + 1):
        receipt(site, number)

    with pytest.raises(ProtocolError, match="round of 1 to 5"):
        receipt(site, STUDY.rounds + 1)
    assert charges(site) == STUDY.rounds


@pytest.mark.usefixtures("guard")
def test_each_socket_takes_only_its_own_requests(site: GuardSite) -> None:
    """A hijacked worker cannot release, a hijacked gateway cannot begin or seal."""
    live = receipt(site)
    with pytest.raises(ProtocolError, match="another operation"):
        GuardClient(site.settings.worker_socket).release("m", ["0" * 64])
    with pytest.raises(ProtocolError, match="another operation"):
        GuardClient(site.settings.worker_socket).bundle_allowed("0" * 64)
    with pytest.raises(ProtocolError):
        GuardClient(site.settings.gateway_socket).begin(instruction(STUDY), signed(STUDY))
    with pytest.raises(ProtocolError):
        GuardClient(site.settings.gateway_socket).seal(live, update())
    for path in (site.settings.worker_socket, site.settings.gateway_socket):
        with pytest.raises(ProtocolError):
            GuardClient(path).record(about(STUDY).canonical)
    with pytest.raises(ProtocolError, match="another operation"):
        site.admin.release("m", ["0" * 64])
    with pytest.raises(ProtocolError, match="another operation"):
        site.admin.seal(live, b"")


@pytest.mark.usefixtures("guard")
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 2**31),
        struct.pack(">I", 4) + b"null" + struct.pack(">Q", 0),
        struct.pack(">I", 2) + b"{}" + struct.pack(">Q", 0),
        struct.pack(">I", 12) + b'{"blobs":[]}' + struct.pack(">Q", 2**40),
        struct.pack(">I", 13) + b'{"blobs":[9]}' + struct.pack(">Q", 3) + b"abc",
        struct.pack(">I", 14) + b'{"blobs":[-1]}' + struct.pack(">Q", 0),
        struct.pack(">I", 24) + b'{"blobs":[],"op":"begin"}'[:24] + struct.pack(">Q", 0),
        struct.pack(">I", 25) + b'{"blobs":[],"op":"begin"}' + struct.pack(">Q", 0),
        b"\x00",
    ],
    ids=range(10),
)
def test_what_is_no_frame_gets_a_refusal_and_the_guard_goes_on(
    site: GuardSite, data: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(site.settings.worker_socket))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)

    assert b'"ok":false' in answer
    assert receipt(site)


@pytest.mark.usefixtures("guard")
def test_connections_that_say_nothing_do_not_stop_the_others(site: GuardSite) -> None:
    silent = []
    for _ in range(20):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(site.settings.worker_socket))
        silent.append(connection)

    assert receipt(site)

    for connection in silent:
        connection.close()


@pytest.mark.usefixtures("guard")
def test_workers_that_ask_at_once_are_charged_once(site: GuardSite) -> None:
    outcomes: list[str] = []

    def ask(attempt: int) -> None:
        try:
            outcomes.append(receipt(site, attempt=attempt))
        except ProtocolError:
            outcomes.append("refused")

    threads = [threading.Thread(target=ask, args=(number % 2,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert outcomes.count("refused") == 4
    assert charges(site) == 1


@pytest.mark.usefixtures("guard")
def test_every_refusal_and_every_release_is_in_the_journal(site: GuardSite) -> None:
    with pytest.raises(PolicyRefused):
        site.worker.begin(instruction(a_study(id="lung")), signed(a_study(id="lung")))
    released(site, site.worker.seal(receipt(site), update()))
    site.gateway.release("m", ["0" * 64])

    actions = [event.action for event in read_events(site.settings.audit_path)]

    assert actions == [
        "guard.started",
        "statement.recorded",
        "study.seen",
        "instruction.refused",
        "study.seen",
        "study.reserved",
        "round.charged",
        "reply.sealed",
        "reply.released",
        "reply.held",
    ]


def test_a_key_that_others_can_read_keeps_the_guard_from_starting(site: GuardSite) -> None:
    site.settings.keys.signing_key.chmod(0o644)

    with pytest.raises(ConfigError, match="chmod 600"):
        start_guard(site.settings, object_ids=object_ids)

    assert not site.settings.worker_socket.exists()


@pytest.mark.usefixtures("guard")
def test_a_second_guard_of_the_same_site_does_not_start(site: GuardSite) -> None:
    with pytest.raises(StartError):
        start_guard(site.settings, object_ids=object_ids)

    assert receipt(site)


def test_a_ledger_put_back_with_its_mark_is_refused_because_of_the_journal(
    site: GuardSite,
) -> None:
    running = start_guard(site.settings, object_ids=object_ids)
    receipt(site, 1)
    running.close()
    for name in ("ledger.sqlite", "ledger.sqlite.mark"):
        (site.settings.folders.state / name).unlink()

    with pytest.raises(LedgerError, match="older ledger"):
        start_guard(site.settings, object_ids=object_ids)


def test_a_lost_guard_is_named_to_its_callers(site: GuardSite) -> None:
    with pytest.raises(StartError, match="fedward-client run"):
        receipt(site)


# What people say: approvals, revocations, pauses (rules 16).


def test_an_approval_is_in_force_at_once_and_so_is_its_revocation(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    running = start_guard(site.settings, object_ids=object_ids)
    with pytest.raises(NotApproved):
        receipt(site)

    site.admin.record(about(STUDY).canonical, signed(STUDY))
    first = receipt(site, 1)
    site.admin.record(about(STUDY, "study-revocation").canonical)

    with pytest.raises(NotApproved, match="revoked"):
        receipt(site, 2)
    with pytest.raises(NotApproved, match="revoked"):
        site.worker.seal(first, update())
    running.close()


def test_replayed_approval_after_a_revocation_is_refused_also_by_a_new_guard(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path)
    running = start_guard(site.settings, object_ids=object_ids)
    approval = about(STUDY).canonical
    site.admin.record(approval)
    site.admin.record(about(STUDY, "study-revocation").canonical)
    with pytest.raises(PolicyRefused, match="accepted before"):
        site.admin.record(approval)
    running.close()

    running = start_guard(site.settings, object_ids=object_ids)

    with pytest.raises(PolicyRefused, match="accepted before"):
        site.admin.record(approval)
    with pytest.raises(NotApproved):
        receipt(site)
    running.close()
    refused = [e for e in read_events(site.settings.audit_path) if e.action == "statement.refused"]
    assert [event.fields["code"] for event in refused] == ["policy", "policy"]


def test_deleted_revocation_keeps_the_guard_from_starting(tmp_path: Path) -> None:
    site = make_site(tmp_path, STUDY)
    running = start_guard(site.settings, object_ids=object_ids)
    revocation = about(STUDY, "study-revocation")
    site.admin.record(revocation.canonical)
    running.close()
    (site.settings.approvals_folder / f"{revocation.sha256}.json").unlink()

    with pytest.raises(LedgerError, match="may be a revocation"):
        start_guard(site.settings, object_ids=object_ids)

    assert not site.settings.gateway_socket.exists()


def test_a_statement_of_a_stranger_carried_into_the_folder_keeps_the_guard_from_starting(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path)
    carry(site, about(STUDY, key=SigningKey.generate()))

    with pytest.raises(ConfigError, match="signed statements of this site's approvers"):
        start_guard(site.settings, object_ids=object_ids)


def test_a_crash_between_file_and_journal_loses_no_statement(tmp_path: Path) -> None:
    """The file is written first: a guard that finds it takes it in as it would a carried one."""
    site = make_site(tmp_path, STUDY)
    start_guard(site.settings, object_ids=object_ids).close()
    carry(site, about(STUDY, "study-revocation"))

    running = start_guard(site.settings, object_ids=object_ids)

    with pytest.raises(NotApproved, match="revoked"):
        receipt(site)
    running.close()


@pytest.mark.usefixtures("guard")
def test_a_pause_in_mid_round_holds_everything_within_two_seconds(site: GuardSite) -> None:
    """One reply is half out, one is sealed, one is being trained, one is asked for."""
    half = site.worker.seal(receipt(site, 1), update())
    assert released(site, half, "message-1")
    ids = sorted(object_ids(half))
    site.gateway.journal(passing(ids[0]))
    sealed = site.worker.seal(receipt(site, 2), update(0.25))
    training = receipt(site, 3)

    asked = time.monotonic()
    site.admin.record(statement("pause").canonical)
    for attempt in (
        lambda: site.gateway.journal(passing(ids[1])),
        lambda: released(site, sealed, "message-2"),
        lambda: site.worker.seal(training, update(0.75)),
        lambda: receipt(site, 4),
    ):
        with pytest.raises(Paused, match=STEWARD_NAME):
            attempt()
    took = time.monotonic() - asked

    assert took < 2.0
    assert charges(site) == 3
    site.admin.record(statement("resume").canonical)
    assert released(site, sealed, "message-2")
    site.gateway.journal(passing(ids[1]))


@pytest.mark.usefixtures("guard")
def test_who_is_not_on_the_list_can_neither_approve_nor_resume(site: GuardSite) -> None:
    site.admin.record(statement("pause").canonical)
    stranger = SigningKey.generate()

    for kind in ("pause", "resume"):
        with pytest.raises(PolicyRefused, match="approvers"):
            site.admin.record(statement(kind, key=stranger).canonical)

    with pytest.raises(Paused):
        receipt(site)


def test_the_bytes_of_a_day_are_counted_over_a_restart(tmp_path: Path) -> None:
    site = make_site(tmp_path, STUDY, max_bytes_per_day=5000)
    running = start_guard(site.settings, object_ids=object_ids)
    site.gateway.journal(
        Passing(direction="out", route="renew", kind="renewal", sha256="1" * 64, bytes=4900)
    )
    running.close()

    running = start_guard(site.settings, object_ids=object_ids)

    with pytest.raises(PolicyRefused, match="max_bytes_per_day"):
        released(site, site.worker.seal(receipt(site), update()))
    running.close()


def test_the_bytes_of_a_round_are_counted_over_a_restart(tmp_path: Path) -> None:
    site = make_site(tmp_path, STUDY, max_bytes_per_round=2000)
    running = start_guard(site.settings, object_ids=object_ids)
    envelope = site.worker.seal(receipt(site), update())
    assert released(site, envelope)
    first, second = sorted(object_ids(envelope))
    site.gateway.journal(
        Passing(direction="out", route="push-object", kind="object", sha256=first, bytes=1995)
    )
    running.close()

    running = start_guard(site.settings, object_ids=object_ids)

    with pytest.raises(PolicyRefused, match="max_bytes_per_round"):
        site.gateway.journal(passing(second))
    running.close()


# Patients who object.


def test_a_changed_list_of_patients_who_object_is_noted_by_its_digest_alone(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path, STUDY, top={"exclusions": "exclusions.csv"})
    listed = tmp_path / "exclusions.csv"
    listed.write_text("patient_id\n")
    running = start_guard(site.settings, object_ids=object_ids)
    receipt(site, 1)
    receipt(site, 2)
    listed.write_text("patient_id\np-17\np-23\n")
    receipt(site, 3)
    running.close()
    start_guard(site.settings, object_ids=object_ids).close()

    events = [e for e in read_events(site.settings.audit_path) if e.action == "exclusions.changed"]

    noted = [event.fields["sha256"] for event in events]
    assert noted == [
        sha256_hex(KEYS["north"].sign(f"fedward/exclusions/v1|{sha256_hex(content)}".encode()))
        for content in (b"patient_id\n", listed.read_bytes())
    ]
    assert b"p-17" not in site.settings.audit_path.read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"p-17\n", b"patient_id\n\xff\n"])
def test_without_a_good_list_of_patients_who_object_nothing_is_trained_or_charged(
    tmp_path: Path, content: bytes | None
) -> None:
    site = make_site(tmp_path, STUDY, top={"exclusions": "exclusions.csv"})
    if content is not None:
        (tmp_path / "exclusions.csv").write_bytes(content)
    running = start_guard(site.settings, object_ids=object_ids)

    with pytest.raises(DataError, match="exclusions") as caught:
        receipt(site)

    running.close()
    assert "p-17" not in str(caught.value)
    assert charges(site) == 0


def start_process(site: GuardSite) -> subprocess.Popen[bytes]:
    """The guard as a process of its own, as `fedward-client guard` runs it, once it answers."""
    code = (
        "import sys; from pathlib import Path; "
        "from fedward_client.guard.main import run_guard; "
        "from fedward_client.settings import load_site_settings; "
        "from tests.support.guard_site import object_ids, update_shapes; "
        "settings = load_site_settings(Path(sys.argv[1])); "
        "run_guard(settings, object_ids=object_ids, shapes=update_shapes)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(site.folder / "site.toml")], cwd=ROOT
    )
    limit = time.monotonic() + 60
    while time.monotonic() < limit and process.poll() is None:
        try:
            site.gateway.bundle_allowed("0" * 64)
        except StartError:
            time.sleep(0.02)
        else:
            return process
    process.kill()
    raise AssertionError("the guard did not start")


def test_kill_9_in_the_middle_of_charges_loses_no_charge(tmp_path: Path) -> None:
    """The guard's process is killed while rounds are granted and sealed, three times.

    Every grant that reached the worker is in the ledger, every round once; what was sealed comes
    back unchanged and uncharged.
    """
    site = make_site(tmp_path, LONG_STUDY)
    study = signed(LONG_STUDY)
    granted: set[int] = set()
    sealed: dict[int, Envelope] = {}
    number = 0
    for attempt in range(3):
        process = start_process(site)
        number += 1
        first = site.worker.begin(instruction(LONG_STUDY, number), study)
        assert isinstance(first, Grant)
        granted.add(number)
        # At another point of a charge or a seal each time.
        timer = threading.Timer(0.1 + 0.033 * attempt, process.send_signal, (signal.SIGKILL,))
        timer.start()
        try:
            while number < LONG_STUDY.rounds:
                number += 1
                grant = site.worker.begin(instruction(LONG_STUDY, number), study)
                assert isinstance(grant, Grant)
                granted.add(number)
                if number % 2:
                    sealed[number] = site.worker.seal(grant.receipt, update())
        except StartError:
            pass
        timer.cancel()
        process.kill()
        process.wait()

    process = start_process(site)
    (before,) = budget_report(site.settings)["studies"]
    for asked in sorted(granted):
        # A grant whose seal was cut off is given again; a sealed one comes back or is gone.
        try:
            answer = site.worker.begin(instruction(LONG_STUDY, asked), study)
        except ProtocolError as error:
            if "deleted since" not in str(error):
                raise
            continue
        if isinstance(answer, StoredReply) and asked in sealed:
            assert answer.envelope == sealed[asked]
    (after,) = budget_report(site.settings)["studies"]
    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=10) == 0
    assert len(granted) > 6
    assert sealed
    assert len(granted) <= before["rounds_charged"] <= len(granted) + 3
    assert after["rounds_charged"] == before["rounds_charged"]
    assert verify(site.settings.audit_path).torn_bytes == 0
