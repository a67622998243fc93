"""What each operation of FedwardSite answers, and which models whose keys may get."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedward_common.canonical import sha256_hex
from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.ids import SiteId
from fedward_common.model_package import CARD, MANIFEST, MODEL, STUDY
from fedward_server.edge.fetch_model import ModelPieces
from fedward_server.edge.hello import MAX_VERSIONS, Greeting
from fedward_server.edge.list_models import ModelList
from fedward_server.edge.renew import MAX_REQUEST_BYTES, Renewal
from fedward_server.models import CHUNK_BYTES, ModelShelf, package_path
from fedward_server.ports import SiteRecord
from fedward_server.sign_model import sign_model
from tests.support.edge import Events
from tests.support.finished_run import FinishedRun, finished_run
from tests.support.pki import Authority, Site
from tests.support.roster import InMemoryRegistry

NAMES = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def sites() -> dict[str, Site]:
    authority = Authority()
    return {name: authority.site(name) for name in (*NAMES, "outside")}


@pytest.fixture
def run(tmp_path: Path, sites: dict[str, Site]) -> FinishedRun:
    return finished_run(tmp_path, *(sites[name] for name in NAMES))


@pytest.fixture
def signed(run: FinishedRun) -> FinishedRun:
    sign_model(run.state, run.name, key=run.lead)
    return run


def listed(run: FinishedRun, record: SiteRecord) -> list[wire.ModelEntry]:
    answer = ModelList(shelf=ModelShelf(run.state)).answer(record, wire.ListModelsRequest())
    return list(answer.models)


def piece(
    run: FinishedRun, record: SiteRecord, file: str = MODEL, *, offset: int = 0, name: str = ""
) -> bytes:
    request = wire.FetchModelRequest(run=name or run.name, file=file, offset=offset)
    return ModelPieces(shelf=ModelShelf(run.state)).answer(record, request)[0].content


def refusal(run: FinishedRun, record: SiteRecord, **request: object) -> Refusal:
    with pytest.raises(CallRefused) as caught:
        piece(run, record, **request)  # type: ignore[arg-type]
    return caught.value.refusal


# Hello.


def greeting(*records: SiteRecord, events: Events | None = None) -> Greeting:
    registry = InMemoryRegistry(*records)
    return Greeting(members=registry, log=events or Events(), clock=lambda: 1234.5)


def test_hello_tells_versions_time_and_who_was_revoked(sites: dict[str, Site]) -> None:
    desk = greeting(*(sites[name].record for name in NAMES))
    desk.members.revoke(SiteId("beta"))  # type: ignore[attr-defined]

    reply = desk.answer(sites["alpha"].record, wire.HelloRequest())

    assert (reply.time, list(reply.revoked)) == (1234.5, ["beta"])
    assert {"fedward-server", "fedward-common", "flwr"} <= set(reply.versions)


def test_a_sites_version_is_written_once_until_it_changes(sites: dict[str, Site]) -> None:
    events = Events()
    desk, record = greeting(sites["alpha"].record, events=events), sites["alpha"].record
    for said in ("0.1.0", "0.1.0", "0.2.0+local"):
        desk.answer(record, wire.HelloRequest(versions={"fedward-client": said}))

    versions = [fields["version"] for fields in events.of("edge.site-version")]
    assert versions == ["0.1.0", "0.2.0-local"]


@pytest.mark.parametrize(
    "versions",
    [
        {"fedward-client": "one\ntwo"},
        {"a name": "1.0"},
        {"fedward-client": "v" * 100},
        {f"d{number}": "1.0" for number in range(MAX_VERSIONS + 1)},
    ],
)
def test_free_text_in_place_of_versions_is_refused(
    sites: dict[str, Site], versions: dict[str, str]
) -> None:
    with pytest.raises(CallRefused) as caught:
        greeting().answer(sites["alpha"].record, wire.HelloRequest(versions=versions))
    assert caught.value.refusal is Refusal.MALFORMED


# Renew.


class Desk:
    """Grants everything."""

    def renew(self, record: SiteRecord, request_pem: bytes) -> bytes:
        return f"chain of {record.site_id}: ".encode() + request_pem


def test_renew_asks_the_desk_for_the_site_of_the_connection(sites: dict[str, Site]) -> None:
    reply = Renewal(desk=Desk()).answer(
        sites["alpha"].record, wire.RenewRequest(request_pem=b"csr")
    )

    assert reply.chain_pem == b"chain of alpha: csr"


def test_a_huge_certificate_request_is_refused_before_anyone_reads_it(
    sites: dict[str, Site],
) -> None:
    request = wire.RenewRequest(request_pem=bytes(MAX_REQUEST_BYTES + 1))

    with pytest.raises(CallRefused) as caught:
        Renewal(desk=Desk()).answer(sites["alpha"].record, request)
    assert caught.value.refusal is Refusal.BODY_TOO_LARGE


# Models.


def test_a_site_of_the_study_is_offered_the_signed_model(
    signed: FinishedRun, sites: dict[str, Site]
) -> None:
    (entry,) = listed(signed, sites["beta"].record)

    assert (entry.run, entry.study, entry.study_id) == (
        signed.name,
        signed.study.digest,
        signed.study.id,
    )
    assert set(entry.files) == {MODEL, CARD, STUDY, MANIFEST}


def test_a_model_that_its_lead_has_not_signed_is_nobodys(
    run: FinishedRun, sites: dict[str, Site]
) -> None:
    assert listed(run, sites["alpha"].record) == []
    assert refusal(run, sites["alpha"].record) is Refusal.MODEL


def test_a_site_outside_the_study_gets_nothing(signed: FinishedRun, sites: dict[str, Site]) -> None:
    assert listed(signed, sites["outside"].record) == []
    assert refusal(signed, sites["outside"].record) is Refusal.MODEL


@pytest.mark.parametrize("key", ["node_public_key", "signing_public_key"])
def test_a_site_of_the_studys_name_with_another_key_gets_nothing(
    signed: FinishedRun, sites: dict[str, Site], key: str
) -> None:
    stranger = replace(sites["alpha"].record, **{key: getattr(sites["outside"].record, key)})

    assert listed(signed, stranger) == []
    assert refusal(signed, stranger) is Refusal.MODEL


def test_a_package_that_another_key_signed_is_not_offered(
    signed: FinishedRun, sites: dict[str, Site], tmp_path: Path
) -> None:
    other = finished_run(tmp_path / "other", *(sites[name] for name in NAMES))
    sign_model(other.state, other.name, key=other.lead)
    theirs, ours = package_path(other.state, other.name), package_path(signed.state, signed.name)
    (ours / MANIFEST).write_bytes(
        (theirs / MANIFEST)
        .read_bytes()
        .replace(other.study.digest.encode(), signed.study.digest.encode())
    )

    assert listed(signed, sites["alpha"].record) == []


@pytest.mark.parametrize("file", ["../study.json", "/etc/passwd", "outcome.json", "", "manifest"])
def test_no_other_file_is_read(signed: FinishedRun, sites: dict[str, Site], file: str) -> None:
    assert refusal(signed, sites["alpha"].record, file=file) is Refusal.MODEL


@pytest.mark.parametrize("name", ["../runs", ".", "A", "x/y", "unknown"])
def test_no_other_folder_is_read(signed: FinishedRun, sites: dict[str, Site], name: str) -> None:
    assert refusal(signed, sites["alpha"].record, name=name) is Refusal.MODEL


def test_a_file_comes_whole_in_pieces_of_a_mebibyte(
    signed: FinishedRun, sites: dict[str, Site]
) -> None:
    """The card stands in for a large file: the shelf hands out what lies there."""
    content = bytes(range(256)) * 4096 * 2 + b"tail"
    (package_path(signed.state, signed.name) / CARD).write_bytes(content)
    record, shelf = sites["alpha"].record, ModelShelf(signed.state)
    pieces = ModelPieces(shelf=shelf)
    received, passed = b"", []
    while len(received) < len(content):
        request = wire.FetchModelRequest(run=signed.name, file=CARD, offset=len(received))
        reply, line = pieces.answer(record, request)
        received += reply.content
        passed.append(line)
        assert len(reply.content) <= CHUNK_BYTES
        assert reply.size == len(content)

    assert received == content
    assert [line is None for line in passed] == [True, True, False]


def test_the_last_piece_is_the_line_of_the_whole_file(
    signed: FinishedRun, sites: dict[str, Site]
) -> None:
    request = wire.FetchModelRequest(run=signed.name, file=MODEL)
    _, line = ModelPieces(shelf=ModelShelf(signed.state)).answer(sites["alpha"].record, request)

    content = (package_path(signed.state, signed.name) / MODEL).read_bytes()
    assert line is not None
    assert (line.kind, line.sha256, line.size_bytes) == (
        "model",
        sha256_hex(content),
        len(content),
    )


def test_an_offset_beyond_the_end_is_refused(signed: FinishedRun, sites: dict[str, Site]) -> None:
    assert refusal(signed, sites["alpha"].record, offset=1 << 40) is Refusal.MALFORMED


def test_a_model_signed_again_by_its_lead_is_offered_as_it_is_now(
    signed: FinishedRun, sites: dict[str, Site]
) -> None:
    first = piece(signed, sites["alpha"].record, MANIFEST)
    sign_model(signed.state, signed.name, key=signed.lead)

    again = piece(signed, sites["alpha"].record, MANIFEST)
    assert again != first  # the log's head is another after the first signature
    assert listed(signed, sites["alpha"].record)[0].files[MANIFEST] == len(again)
