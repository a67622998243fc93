"""A hospital's models: taken only as the lead of an approved study signed them, written down."""

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedward_client.gateway.offers import ModelOffer, model_offers
from fedward_client.guard.frames import Frame
from fedward_client.guard.server import Access, GuardServer
from fedward_client.model_command import GatewaysJournal
from fedward_client.models import (
    Fetched,
    ModelFetcher,
    approved_studies,
    choose,
    offers_json,
    offers_text,
    verify_model,
)
from fedward_client.ports import Passing
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel.routes import CallRefused
from fedward_common.errors import (
    ChannelError,
    ConfigError,
    ProtocolError,
    SignatureRefused,
    StartError,
)
from fedward_common.model_package import CARD, MANIFEST, MODEL, STUDY
from fedward_common.trust.signing import SigningKey
from fedward_common.trust.statements import Statement
from fedward_server.models import package_path
from fedward_server.sign_model import sign_model
from tests.support.finished_run import FinishedRun, finished_run
from tests.support.pki import Authority


@dataclass(kw_only=True)
class FakeCoordinator:
    """Offers one package and hands it out by small pieces; may break off or lie."""

    files: dict[str, bytes]
    offer: ModelOffer
    piece_bytes: int = 700
    break_after: int | None = None
    asked: list[tuple[str, int]] = field(default_factory=list)

    async def models(self) -> tuple[ModelOffer, ...]:
        return (self.offer,)

    async def model_piece(self, run: str, file: str, *, offset: int) -> tuple[bytes, int]:
        self.asked.append((file, offset))
        if self.break_after is not None and len(self.asked) > self.break_after:
            raise ChannelError("the network is cut")
        content = self.files[file]
        return content[offset : offset + self.piece_bytes], len(content)


@dataclass
class FakeGuard:
    """A guard's journal; `gone` is one that does not answer."""

    written: list[Passing] = field(default_factory=list)
    gone: bool = False

    def journal(self, passing: Passing) -> None:
        if self.gone:
            raise StartError("no guard")
        self.written.append(passing)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    authority = Authority()
    sites = [authority.site(name) for name in ("alpha", "beta", "gamma")]
    made = finished_run(tmp_path_factory.mktemp("coordinator"), *sites)
    sign_model(made.state, made.name, key=made.lead)
    return made


def package(run: FinishedRun) -> dict[str, bytes]:
    folder = package_path(run.state, run.name)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def coordinator(run: FinishedRun, files: Mapping[str, bytes] | None = None) -> FakeCoordinator:
    held = dict(package(run) if files is None else files)
    return FakeCoordinator(
        files=held,
        offer=ModelOffer(
            run=run.name,
            study=run.study.digest,
            study_id=run.study.id,
            model_sha256=sha256_hex(held[MODEL]),
            files={name: len(content) for name, content in held.items()},
        ),
    )


def fetch(
    channel: FakeCoordinator,
    out: Path,
    *,
    approved: frozenset[str],
    guard: Any = None,
    seen: list[tuple[int, int]] | None = None,
) -> Fetched:
    fetcher = ModelFetcher(
        channel=channel,
        journal=guard or FakeGuard(),
        approved=approved,
        out=out,
        progress=lambda done, size: (seen if seen is not None else []).append((done, size)),
    )
    return asyncio.run(fetcher.fetch(channel.offer))


def of(run: FinishedRun) -> frozenset[str]:
    return frozenset({run.study.digest})


def left(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir()) if out.exists() else []


def test_a_model_comes_whole_and_verified_under_its_runs_name(
    run: FinishedRun, tmp_path: Path
) -> None:
    channel, seen = coordinator(run), []

    fetched = fetch(channel, tmp_path, approved=of(run), seen=seen)

    assert (fetched.folder, fetched.new) == (tmp_path / run.name, True)
    assert {path.name: path.read_bytes() for path in fetched.folder.iterdir()} == package(run)
    assert left(tmp_path) == [run.name]
    assert seen[-1][0] == seen[-1][1] == sum(map(len, package(run).values()))


def test_every_file_is_in_the_journal_before_it_has_its_name(
    run: FinishedRun, tmp_path: Path
) -> None:
    guard = FakeGuard()

    fetch(coordinator(run), tmp_path, approved=of(run), guard=guard)

    assert {(p.direction, p.route, p.kind, p.sha256, p.bytes) for p in guard.written} == {
        ("in", "fetch-model", "model", sha256_hex(content), len(content))
        for content in package(run).values()
    }


def test_without_a_guard_to_write_it_down_no_model_gets_its_name(
    run: FinishedRun, tmp_path: Path
) -> None:
    with pytest.raises(StartError):
        fetch(coordinator(run), tmp_path, approved=of(run), guard=FakeGuard(gone=True))

    assert run.name not in left(tmp_path)


def test_a_download_that_broke_off_goes_on_where_it_was(run: FinishedRun, tmp_path: Path) -> None:
    channel = coordinator(run)
    channel.break_after = 2
    with pytest.raises(ChannelError):
        fetch(channel, tmp_path, approved=of(run))
    broken_off, channel.break_after = list(channel.asked), None
    channel.asked.clear()

    fetched = fetch(channel, tmp_path, approved=of(run))

    assert fetched.new
    assert channel.asked[0] == broken_off[-1]
    assert channel.asked[0][1] > 0 or channel.asked[0][0] != MODEL


def test_a_model_that_is_there_is_verified_and_not_fetched_again(
    run: FinishedRun, tmp_path: Path
) -> None:
    fetch(coordinator(run), tmp_path, approved=of(run))
    channel = coordinator(run)

    assert not fetch(channel, tmp_path, approved=of(run)).new
    assert channel.asked == []


def test_a_model_of_a_study_that_was_never_approved_here_is_refused(
    run: FinishedRun, tmp_path: Path
) -> None:
    guard = FakeGuard()

    with pytest.raises(SignatureRefused, match="that this hospital approved"):
        fetch(coordinator(run), tmp_path, approved=frozenset({"0" * 64}), guard=guard)
    assert (left(tmp_path), guard.written) == ([], [])


@pytest.mark.parametrize("name", [MODEL, CARD, STUDY, MANIFEST])
def test_a_file_with_one_byte_changed_is_refused_and_gone(
    run: FinishedRun, tmp_path: Path, name: str
) -> None:
    files = package(run)
    content = bytearray(files[name])
    content[len(content) // 2] ^= 1
    files[name] = bytes(content)

    with pytest.raises((SignatureRefused, ProtocolError)):
        fetch(coordinator(run, files), tmp_path, approved=of(run))
    assert left(tmp_path) == []


def test_a_coordinator_that_signs_in_the_leads_place_is_refused(
    run: FinishedRun, tmp_path: Path
) -> None:
    """It holds model, study and lineage; the one thing it has not is the lead's key."""
    files, key = package(run), SigningKey.generate()
    manifest = json.loads(files[MANIFEST])["manifest"] | {"public_key": key.public_hex}
    signature = key.sign(b"fedward/model/v1|" + canonical_json(manifest)).hex()
    files[MANIFEST] = canonical_json({"manifest": manifest, "signature": signature})

    with pytest.raises(SignatureRefused, match="study's lead"):
        fetch(coordinator(run, files), tmp_path, approved=of(run))
    assert left(tmp_path) == []


def test_a_package_without_its_study_is_refused(run: FinishedRun, tmp_path: Path) -> None:
    files, key = package(run), run.lead
    del files[STUDY]
    manifest = json.loads(files[MANIFEST])["manifest"]
    del manifest["study_sha256"]
    signature = key.sign(b"fedward/model/v1|" + canonical_json(manifest)).hex()
    files[MANIFEST] = canonical_json({"manifest": manifest, "signature": signature})

    with pytest.raises(SignatureRefused, match="that this hospital approved"):
        fetch(coordinator(run, files), tmp_path, approved=of(run))


def test_another_model_than_the_offered_one_is_refused(run: FinishedRun, tmp_path: Path) -> None:
    channel = coordinator(run)
    channel.offer = replace(channel.offer, model_sha256="0" * 64)

    with pytest.raises(ProtocolError, match="offered one"):
        fetch(channel, tmp_path, approved=of(run))
    assert left(tmp_path) == []


@pytest.mark.parametrize("lie", [{"study": "0" * 64}, {"study_id": "better"}, {"run": "new-0002"}])
def test_the_model_of_another_study_or_run_is_not_taken_for_the_one_that_was_asked_for(
    run: FinishedRun, tmp_path: Path, lie: dict[str, str]
) -> None:
    """A coordinator that was taken over hands out an old model, rightly signed, as the new one."""
    channel = coordinator(run)
    channel.offer = replace(channel.offer, **lie)  # type: ignore[arg-type]

    with pytest.raises(ProtocolError, match="offered one"):
        fetch(channel, tmp_path, approved=of(run) | {"0" * 64})
    assert left(tmp_path) == []


def test_a_model_that_is_there_is_not_taken_for_another_that_is_offered(
    run: FinishedRun, tmp_path: Path
) -> None:
    fetch(coordinator(run), tmp_path, approved=of(run))
    channel = coordinator(run)
    channel.offer = replace(channel.offer, study="0" * 64)

    with pytest.raises(ProtocolError, match="offered one"):
        fetch(channel, tmp_path, approved=of(run))
    assert left(tmp_path) == [run.name]


@pytest.mark.parametrize("lie", ["longer", "nothing", "too much"])
def test_a_coordinator_that_changes_sizes_on_the_way_ends_the_transfer(
    run: FinishedRun, tmp_path: Path, lie: str
) -> None:
    channel = coordinator(run)

    async def lying(_run: str, file: str, *, offset: int) -> tuple[bytes, int]:
        content = channel.files[file]
        if lie == "longer":
            return content[offset : offset + 10], len(content) + 1
        return (b"" if lie == "nothing" else bytes(2 << 20)), len(content)

    channel.model_piece = lying  # type: ignore[method-assign]

    with pytest.raises(ChannelError, match="expected a piece"):
        fetch(channel, tmp_path, approved=of(run))


def test_a_package_that_does_not_fit_the_disk_is_not_begun(
    run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fedward_client.models.shutil.disk_usage", lambda _path: SimpleNamespace(free=10)
    )
    channel = coordinator(run)

    with pytest.raises(ConfigError, match="room for"):
        fetch(channel, tmp_path, approved=of(run))
    assert channel.asked == []


# Offers.


def entry(**changes: Any) -> wire.ModelEntry:
    values: dict[str, Any] = {
        "run": "made-up-0001",
        "study": "a" * 64,
        "study_id": "made-up",
        "model_sha256": "b" * 64,
        "files": {MODEL: 10, CARD: 10, MANIFEST: 10},
    }
    return wire.ModelEntry(**values | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "../../etc"},
        {"run": "a/b"},
        {"run": ""},
        {"study": "x"},
        {"study_id": "A\n"},
        {"model_sha256": ""},
        {"files": {MODEL: 10}},
        {"files": {MODEL: 10, MANIFEST: 10, "../x": 10}},
        {"files": {MODEL: 10, MANIFEST: 10, "model.pt": 10}},
        {"files": {MODEL: 1 << 50, MANIFEST: 10}},
        {"files": {MODEL: 0, MANIFEST: 10}},
    ],
)
def test_an_offer_of_another_form_ends_the_list(changes: dict[str, Any]) -> None:
    """A name from the coordinator becomes the name of a file."""
    with pytest.raises(CallRefused):
        model_offers(wire.ListModelsReply(models=[entry(), entry(**changes)]))


def test_offers_in_order_come_as_they_are() -> None:
    (offer,) = model_offers(wire.ListModelsReply(models=[entry()]))

    assert (offer.run, offer.files[MODEL]) == ("made-up-0001", 10)


def test_a_run_is_chosen_by_its_name_or_by_its_study_when_there_is_one() -> None:
    first, second = (
        model_offers(wire.ListModelsReply(models=[entry(run=f"made-up-{number}")]))[0]
        for number in (1, 2)
    )

    assert choose([first, second], "made-up-2") is second
    assert choose([first], "made-up") is first
    with pytest.raises(ConfigError, match="found 2"):
        choose([first, second], "made-up")
    with pytest.raises(ConfigError, match="found 0"):
        choose([first], "another")


def test_the_list_says_which_study_was_approved_here() -> None:
    offers = model_offers(wire.ListModelsReply(models=[entry(), entry(study="c" * 64)]))
    approved = frozenset({"c" * 64})

    text = offers_text(offers, approved=approved).splitlines()
    assert ["NOT approved" in line for line in text] == [True, False]
    assert [one["approved"] for one in offers_json(offers, approved=approved)["models"]] == [
        False,
        True,
    ]


# What was approved.


def site_settings(folder: Path, key: SigningKey, *, name: str = "Dr Ada") -> Any:
    return SimpleNamespace(
        site="alpha",
        approvals_folder=folder,
        approvers=(SimpleNamespace(name=name, public_key=key.public_hex),),
    )


def said(key: SigningKey, *, study: str, site: str = "alpha", name: str = "Dr Ada") -> Statement:
    return Statement.sign(
        "study-approval",
        {"study": study, "study_id": "made-up", "site": site},
        person=name,
        key=key,
        now=datetime.now(UTC),
    )


def test_a_study_counts_as_approved_by_this_sites_approver_alone(tmp_path: Path) -> None:
    key, stranger = SigningKey.generate(), SigningKey.generate()
    statements = [
        said(key, study="a" * 64),
        said(key, study="b" * 64, site="beta"),
        said(stranger, study="c" * 64),
        said(key, study="d" * 64, name="Somebody Else"),
    ]
    for statement in statements:
        (tmp_path / f"{statement.sha256}.json").write_bytes(statement.canonical)
    (tmp_path / "broken.json").write_bytes(b"{")

    assert approved_studies(site_settings(tmp_path, key)) == {"a" * 64}


def test_a_site_that_approved_nothing_has_no_approved_study(tmp_path: Path) -> None:
    assert approved_studies(site_settings(tmp_path / "none", SigningKey.generate())) == frozenset()


def test_a_package_on_disk_is_verified_by_key_alone_where_one_is_given(
    run: FinishedRun,
) -> None:
    folder = package_path(run.state, run.name)

    manifest = verify_model(folder, approved=None, public_key=run.lead.public_hex)

    assert manifest["study"]["id"] == run.study.id
    with pytest.raises(SignatureRefused):
        verify_model(folder, approved=None, public_key=SigningKey.generate().public_hex)


# Whose the journal is.


def test_the_journal_is_asked_as_the_gateways_user_also_where_root_types_the_command() -> None:
    """The guard hears nobody else on that socket, not even root; elsewhere all are one user."""
    root = os.geteuid() == 0
    names = ("guard_user", "gateway_user", "node_user", "worker_user")
    users = {name: f"#{12001 + number}" if root else None for number, name in enumerate(names)}
    heard: list[str] = []

    def journal(_frame: Frame) -> Frame:
        heard.append("journal")
        return Frame(header={})

    folder = Path(tempfile.mkdtemp(prefix="fedward-"))  # not pytest's, which is for its user alone
    folder.chmod(0o711)
    access = Access(
        uids=frozenset({12002 if root else os.geteuid()}), group="#12009" if root else None
    )
    (folder / "run").mkdir()
    (folder / "run").chmod(0o710)  # whatever this process's umask is
    if root:
        os.chown(folder / "run", 0, 12009)
    server = GuardServer(folder / "run" / "gateway.sock", {"journal": journal}, access=access)
    settings: Any = SimpleNamespace(
        gateway_socket=folder / "run" / "gateway.sock",
        guard=SimpleNamespace(**users, group="#12009" if root else None, admin_user=None),
    )
    canonical_json({"a": 1})  # its codec: the other user may not read this machine's Python

    try:
        GatewaysJournal(settings).journal(
            Passing(direction="in", route="fetch-model", kind="model", sha256="a" * 64, bytes=1)
        )
    finally:
        server.close()
        shutil.rmtree(folder)

    assert heard == ["journal"]
    assert os.geteuid() == (0 if root else os.getuid())
