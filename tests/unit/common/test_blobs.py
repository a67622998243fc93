"""A blob is its manifest, chunk by chunk; its file has no name, a size and one owner."""

import mmap
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.canonical import canonical_json
from fedward_common.channel.blob_files import (
    BlobFile,
    keep_as,
    let_go,
    receive_with_files,
    send_with_files,
    store,
)
from fedward_common.channel.blob_pb2 import BlobArrived
from fedward_common.channel.blobs import (
    CHUNK_BYTES,
    MAX_BLOB_BYTES,
    Have,
    Manifest,
    in_transit,
    manifest_of,
    manifests_in,
    with_blobs,
)
from fedward_common.channel.phases import framed
from fedward_common.errors import ProtocolError, StorageError
from fedward_common.wire import Envelope

STUDY = "5" * 64
DATA = bytes(range(256)) * 5000  # two chunks, the second shorter


def test_equal_bytes_have_one_id_in_every_study_and_others_another() -> None:
    assert manifest_of(STUDY, DATA).id == manifest_of("6" * 64, memoryview(DATA)).id
    assert manifest_of(STUDY, DATA).id != manifest_of(STUDY, DATA + b"x").id


def test_only_whole_chunks_of_the_right_bytes_pass() -> None:
    manifest = manifest_of(STUDY, DATA)
    first, second = DATA[:CHUNK_BYTES], DATA[CHUNK_BYTES:]
    manifest.check(0, first)
    manifest.check(1, second)

    for number, content in [(0, second), (1, first), (1, second[:-1]), (2, b""), (0, first + b"x")]:
        with pytest.raises(ProtocolError):
            manifest.check(number, content)


@pytest.mark.parametrize(
    "facts",
    [
        {"size": 0, "chunks": []},
        {"size": 1, "chunks": []},
        {"size": 1, "chunks": ["0" * 64] * 2},
        {"size": 1, "chunks": ["0" * 63]},
        {"size": 1, "chunks": ["G" * 64]},
        {"size": -1, "chunks": ["0" * 64]},
        {"size": True, "chunks": ["0" * 64]},
        {"size": MAX_BLOB_BYTES + 1, "chunks": ["0" * 64] * 4097},
        {"size": 1, "chunks": ["0" * 64], "study": "../../etc"},
        {"size": 1, "chunks": ["0" * 64], "name": "../../etc/passwd"},
    ],
)
def test_what_is_no_manifest_is_refused(facts: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        Manifest.parse(canonical_json({"study": STUDY, **facts}))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Manifest.parse(data)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_what_one_side_has_is_what_the_other_reads(case: tuple[int, set[int]]) -> None:
    count, there = case
    have = Have(count)
    for number in there:
        have.add(number)

    read = Have.parse(have.bits, count)

    assert set(read.missing()) == set(range(count)) - there
    assert (read.whole, read.none) == (len(there) == count, not there)


@pytest.mark.parametrize("bits", [b"", b"\0\0", b"\x80"])
def test_bits_of_no_chunk_are_refused(bits: bytes) -> None:
    with pytest.raises(ProtocolError):
        Have.parse(bits, 3)


def test_an_envelope_is_the_same_after_its_blobs_travelled_beside_it() -> None:
    envelope = Envelope(header=b"h", blobs={"study": b"s", "model": DATA})

    carried = in_transit(envelope, STUDY, inline=1000)
    found = manifests_in(carried.blobs)

    assert found == {"model": manifest_of(STUDY, DATA)}
    assert with_blobs(carried, {"model": DATA}) == envelope
    assert in_transit(envelope, STUDY) is not None
    assert dict(in_transit(envelope, STUDY).blobs) == dict(envelope.blobs)


def test_a_blob_and_its_manifest_are_not_both_there() -> None:
    manifest = manifest_of(STUDY, DATA).canonical

    for blobs in ({"model": b"x", "model.manifest": manifest}, {".manifest": manifest}):
        with pytest.raises(ProtocolError):
            manifests_in(blobs)


def test_a_file_has_no_name_and_gives_back_what_it_holds(tmp_path: Path) -> None:
    file = store(tmp_path, DATA)

    assert list(tmp_path.iterdir()) == []
    assert file.chunk(1) == DATA[CHUNK_BYTES:]
    view = file.view()
    file.close()
    let_go(view)
    assert view == DATA
    assert isinstance(view.obj, mmap.mmap)
    with pytest.raises(StorageError):
        file.chunk(0)
    with pytest.raises(StorageError):
        file.write(0, b"x")


def test_a_disk_without_room_is_known_before_a_byte_is_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Free space"):
        BlobFile.make(tmp_path, 1 << 60)


def test_an_open_file_goes_to_another_process_for_reading_only(tmp_path: Path) -> None:
    file, (ours, theirs) = store(tmp_path, DATA), socket.socketpair()
    reader = file.reader()
    send_with_files(ours, framed(BlobArrived(site="north", id="1" * 64)), [reader])
    os.close(reader)
    file.close()

    came = receive_with_files(theirs, BlobArrived)
    assert came is not None
    message, (descriptor,) = came
    adopted = BlobFile.adopt(descriptor, len(DATA))

    assert message.site == "north"
    assert adopted.view() == DATA
    with pytest.raises(StorageError):
        adopted.write(0, b"x")
    with pytest.raises(StorageError):
        BlobFile.adopt(os.dup(adopted.descriptor), 5)
    adopted.close()
    ours.close()
    assert receive_with_files(theirs, BlobArrived) is None
    theirs.close()


def test_a_mapped_file_is_stored_and_named_without_a_copy(tmp_path: Path) -> None:
    file = BlobFile.make(tmp_path, len(DATA), may_be_named=True)
    file.write_at(0, DATA)
    number, view = os.fstat(file.descriptor).st_ino, file.view()
    file.close()

    again = store(tmp_path, view)
    named = keep_as(view, tmp_path / "model")

    assert os.fstat(again.descriptor).st_ino == number
    with pytest.raises(StorageError):
        again.write_at(0, b"x")
    assert named
    assert (tmp_path / "model").stat().st_ino == number
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "model").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_whole_file_that_may_be_named_gets_no_name(tmp_path: Path) -> None:
    nameless, part = store(tmp_path, DATA).view(), store(tmp_path, DATA).view()[1:]

    found = [keep_as(one, tmp_path / "model") for one in (DATA, memoryview(DATA), nameless, part)]

    assert found == [False] * 4
    assert list(tmp_path.iterdir()) == []
