"""Who may fetch which blob, and who may send one, at the edge."""

from pathlib import Path

import pytest

from fedward_common.channel.blob_files import BlobFile, store
from fedward_common.channel.blobs import manifest_of
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.ids import SiteId
from fedward_server.edge.blob_hub import BlobHub, Exchange, offers_of

NORTH, SOUTH = SiteId("north"), SiteId("south")
STUDY, OTHER = "1" * 64, "2" * 64
MODEL, FIRST, SECOND = b"model" * 100, b"first" * 100, b"second" * 100


@pytest.fixture
def told() -> list[tuple[SiteId, str]]:
    return []


def exchange(
    folder: Path, told: list[tuple[SiteId, str]], *, study: str = STUDY, max_bytes: int = 1000
) -> Exchange:
    manifest = manifest_of(study, MODEL)
    return Exchange(
        study=study,
        arrived=lambda site, blob, _file: told.append((site, blob)),
        offers=offers_of([(manifest, store(folder, MODEL), [NORTH])]),
        senders=frozenset({NORTH, SOUTH}),
        max_bytes=max_bytes,
    )


def hub(folder: Path, *, quota: int = 10_000) -> BlobHub:
    return BlobHub(make_file=lambda size: BlobFile.make(folder, size), quota_bytes=quota)


def refused(expected: Refusal, call: object, *arguments: object) -> None:
    assert callable(call)
    with pytest.raises(CallRefused) as raised:
        call(*arguments)
    assert raised.value.refusal is expected


def test_an_offer_is_of_its_site_its_study_and_its_exchange(
    tmp_path: Path, told: list[tuple[SiteId, str]]
) -> None:
    edge, blob = hub(tmp_path), manifest_of(STUDY, MODEL).id
    first = exchange(tmp_path, told)
    edge.begin(first)

    assert edge.offered(STUDY, NORTH, blob).manifest.id == blob
    refused(Refusal.BLOB, edge.offered, STUDY, SOUTH, blob)
    refused(Refusal.BLOB, edge.offered, OTHER, NORTH, blob)
    offer = edge.offered(STUDY, NORTH, blob)
    edge.begin(exchange(tmp_path, told))
    assert offer.over
    edge.end(first)  # the older ServerApp's end changes nothing of the newer exchange
    assert not edge.offered(STUDY, NORTH, blob).over


def test_a_site_sends_one_blob_and_is_heard_once(
    tmp_path: Path, told: list[tuple[SiteId, str]]
) -> None:
    edge, manifest = hub(tmp_path), manifest_of(STUDY, FIRST)
    edge.begin(exchange(tmp_path, told))
    arrival = edge.arriving(NORTH, manifest)

    edge.whole(NORTH, arrival)
    edge.whole(NORTH, arrival)

    assert edge.arriving(NORTH, manifest) is arrival
    assert told == [(NORTH, manifest.id)]
    refused(Refusal.BLOB, edge.arriving, NORTH, manifest_of(STUDY, SECOND))
    refused(Refusal.BLOB, edge.arriving, SiteId("west"), manifest)
    refused(Refusal.BLOB, edge.arriving, NORTH, manifest_of(OTHER, FIRST))


def test_another_blob_replaces_one_that_is_not_whole_and_its_room_is_free(
    tmp_path: Path, told: list[tuple[SiteId, str]]
) -> None:
    edge = hub(tmp_path, quota=700)
    edge.begin(exchange(tmp_path, told))

    before = edge.arriving(NORTH, manifest_of(STUDY, FIRST))
    edge.arriving(NORTH, manifest_of(STUDY, SECOND))

    assert before.over
    refused(Refusal.BLOB_SIZE, edge.arriving, SOUTH, manifest_of(STUDY, FIRST))


def test_what_is_too_large_for_the_exchange_or_the_disk_takes_no_room(
    tmp_path: Path, told: list[tuple[SiteId, str]]
) -> None:
    edge = hub(tmp_path)
    edge.begin(exchange(tmp_path, told, max_bytes=10))
    refused(Refusal.BLOB_SIZE, edge.arriving, NORTH, manifest_of(STUDY, FIRST))

    full = BlobHub(make_file=lambda _size: BlobFile.make(tmp_path, 1 << 60), quota_bytes=1 << 62)
    full.begin(exchange(tmp_path, told))
    refused(Refusal.BLOB_SIZE, full.arriving, NORTH, manifest_of(STUDY, FIRST))


def test_the_end_of_an_exchange_gives_up_its_files(
    tmp_path: Path, told: list[tuple[SiteId, str]]
) -> None:
    edge, one = hub(tmp_path), exchange(tmp_path, told)
    edge.begin(one)
    arrival = edge.arriving(NORTH, manifest_of(STUDY, FIRST))

    edge.end(one)

    assert arrival.over
    assert arrival.file.descriptor == -1
    edge.whole(NORTH, arrival)
    assert told == []
