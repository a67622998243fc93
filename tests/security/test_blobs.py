"""Blobs let nothing in or out that a message would not: real edge, gateways, guards and ledgers."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedward_common.canonical import sha256_hex
from fedward_common.channel.blobs import manifest_of
from fedward_common.ids import SiteId
from fedward_common.log.events import read_events
from tests.support.blob_sites import MODEL, BlobSites, big
from tests.support.edge_process import RunningEdge, running_edge

pytestmark = pytest.mark.federation

NORTH, SOUTH, WEST = map(SiteId, ("north", "south", "west"))
Sites = Callable[..., BlobSites]


@pytest.fixture(scope="module")
def edge() -> Iterator[RunningEdge]:
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        running_edge(Path(folder), "north", "south", "west", "stranger") as running,
    ):
        yield running


@pytest.fixture
def made(edge: RunningEdge) -> Iterator[Sites]:
    """Makes three hospitals of one study; everything of them ends with the test."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        opened: list[BlobSites] = []

        def make(name: str, **how: str) -> BlobSites:
            opened.append(BlobSites(edge, Path(folder), name, **how))
            return opened[-1]

        yield make
        for sites in opened:
            sites.close()


def passed(edge: RunningEdge, site: str, direction: str) -> list[tuple[str, str, int]]:
    """What the edge wrote down of a site's blobs."""
    return [
        (e.fields["kind"], e.fields["sha256"], e.fields["bytes"])
        for e in read_events(edge.settings.edge_log)
        if e.action == "edge.object"
        and e.fields["route"] == "blob"
        and (e.fields["site"], e.fields["direction"]) == (site, direction)
    ]


def test_model_and_updates_travel_beside_the_messages_and_are_written_down_on_both_sides(
    made: Sites, edge: RunningEdge
) -> None:
    sites = made("beside")
    before = {way: len(passed(edge, NORTH, way)) for way in ("in", "out")}

    for number in (1, 2):
        assert set(sites.ask(number).accepted) == {NORTH, SOUTH, WEST}

    assert sites.taken == dict.fromkeys((NORTH, SOUTH, WEST), sha256_hex(big(0.5)))
    north = sites.sites[NORTH]
    assert north.models == [sha256_hex(MODEL)] * 2
    assert set(sites.messages.sent[NORTH].blobs) == {"study", "model.manifest"}
    for ours, theirs, content in (("in", "out", MODEL), ("out", "in", big(0.5))):
        noted = [
            (e.fields["kind"], e.fields["sha256"], e.fields["bytes"])
            for e in north.noted("object", direction=ours, route="blob")
        ]
        assert noted == [("blob", manifest_of(sites.study.digest, content).id, len(content))] * 2
        assert noted == passed(edge, NORTH, theirs)[before[theirs] :]
