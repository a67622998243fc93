"""A large update comes into a file of the guard's own, which becomes the stored answer uncopied."""

import os
import socket
import threading
from pathlib import Path

import pytest

from fedward_client.guard.frames import read_frame, write_frame
from fedward_client.guard.receipts import Live
from fedward_client.guard.server import worker_spool
from fedward_common.channel.blob_files import BlobFile
from fedward_common.channel.blobs import INLINE_BYTES
from fedward_common.errors import ProtocolError
from fedward_common.wire import Instruction
from tests.support.guard_site import KEYS, instruction, update
from tests.support.secure_federation import secure_study
from tests.unit.client.test_guard import STUDY, Site, policy

LARGE = INLINE_BYTES + 1


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(folder=tmp_path / "replies", policy=policy(STUDY), quota_bytes=2 * LARGE)


def test_what_is_spooled_is_the_first_blob_whole_and_the_others_as_they_are(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    data = os.urandom((3 << 20) + 5)
    sending = threading.Thread(
        target=write_frame, args=(theirs, {"op": "seal"}, (data, b"boxes", b""))
    )
    sending.start()

    frame = read_frame(
        ours, spool=lambda _header, size: BlobFile.make(tmp_path, size, may_be_named=True)
    )
    sending.join()

    assert frame is not None
    assert frame.spooled == data
    assert frame.blobs == (b"", b"boxes", b"")
    assert list(tmp_path.iterdir()) == []


def test_an_update_that_is_cut_off_leaves_nothing(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(bytes.fromhex("0000001b") + b'{"blobs":[64],"op":"seal"} ' + b"\0" * 7 + b"\x40")
    theirs.sendall(b"half")
    theirs.close()

    with pytest.raises(ProtocolError, match="expected 64 bytes"):
        read_frame(ours, spool=lambda _header, size: BlobFile.make(tmp_path, size))

    assert list(tmp_path.iterdir()) == []


def test_the_stored_answer_is_the_file_that_came_in(site: Site) -> None:
    file = site.guard.replies.room(len(update()))
    assert file is not None
    file.write_at(0, update())
    came, view = os.fstat(file.descriptor).st_ino, file.view()
    file.close()

    envelope = site.guard.seal(site.receipt(), view)

    (stored,) = site.folder.glob("*.payload")
    assert envelope.blobs["payload"] == update()
    assert stored.read_bytes() == update()
    assert (stored.stat().st_ino, stored.stat().st_mode & 0o777) == (came, 0o600)


def test_only_a_live_receipt_of_a_round_gets_room_on_the_guards_disk(site: Site) -> None:
    spool, receipt = worker_spool(site.guard), site.receipt()

    room = spool({"op": "seal", "receipt": receipt}, LARGE)

    assert room is not None
    assert spool({"op": "seal", "receipt": receipt}, INLINE_BYTES) is None
    assert spool({"op": "seal", "receipt": receipt}, 2 * LARGE + 1) is None
    assert spool({"op": "begin", "receipt": receipt}, LARGE) is None
    assert spool({"op": "seal", "receipt": "0" * 64}, LARGE) is None
    assert spool({"op": "seal"}, LARGE) is None


def test_what_is_not_masked_yet_never_lies_on_a_disk(site: Site) -> None:
    """Rules 5: stored replies hold protected bytes only; in a secure sum the guard makes them."""
    secure = secure_study(KEYS)
    asked = Instruction.parse(instruction(secure))
    receipt = site.guard._receipts.issue(Live(instruction=asked, study=secure))

    assert worker_spool(site.guard)({"op": "seal", "receipt": receipt}, LARGE) is None
