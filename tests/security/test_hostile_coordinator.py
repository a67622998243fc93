"""A coordinator that sends any instruction it likes, against the guard's real sockets."""

import json
import os
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

import fedward_client.guard.main as guard_main
from fedward_client.budget import budget_report
from fedward_client.gateway.bundle import check_bundle
from fedward_client.gateway.fleet import Bundle
from fedward_client.guard.client import Grant
from fedward_client.guard.main import RunningGuard, start_guard
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import ProtocolError
from fedward_common.log.events import read_events, utc_now
from tests.support.flower_node import bundle
from tests.support.guard_site import (
    GuardSite,
    a_study,
    instruction,
    make_site,
    object_ids,
    signed,
    update,
)

STUDY = a_study()


@pytest.fixture
def site(tmp_path: Path) -> GuardSite:
    return make_site(tmp_path, STUDY)


@pytest.fixture
def guard(site: GuardSite) -> Iterator[RunningGuard]:
    running = start_guard(site.settings, object_ids=object_ids)
    yield running
    running.close()


def altered(**changes: Any) -> bytes:
    return json.dumps(json.loads(instruction(STUDY)) | changes).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 2**60},
        {"attempt": 2**60},
        {"round": 1e30},
        {"attempt": -1},
        {"round": True},
        {"cohort": ["north", "\ud800"]},
        {"cohort": ["north"] * 2},
        {"cohort": ["north", "../../etc/passwd"]},
        {"cohort": []},
        {"extra": 1},
    ],
    ids=[
        "round", "attempt", "float", "negative", "bool",
        "surrogate", "twice", "stranger", "nobody", "extra",
    ],
)  # fmt: skip
def test_an_odd_instruction_is_refused_in_words_and_the_guard_goes_on(
    site: GuardSite, guard: RunningGuard, changes: dict[str, Any]
) -> None:
    with pytest.raises(ProtocolError):
        site.worker.begin(altered(**changes), signed(STUDY))

    assert budget_report(site.settings)["studies"] == []
    assert isinstance(site.worker.begin(instruction(STUDY), signed(STUDY)), Grant)


@pytest.mark.parametrize("text", ["round", "kind", "study"])
def test_a_key_that_stands_twice_has_one_meaning_for_charge_and_reply(
    site: GuardSite, guard: RunningGuard, text: str
) -> None:
    """Whatever the spelling, the idempotency key is that of the one canonical instruction."""
    plain = instruction(STUDY)
    value = json.dumps(json.loads(plain)[text])
    doubled = b"{" + f'"{text}": {value}, '.encode() + plain[1:]

    site.worker.begin(doubled, signed(STUDY))
    site.worker.begin(plain, signed(STUDY))

    (study,) = budget_report(site.settings)["studies"]
    assert study["rounds_charged"] == 1


def test_stored_bytes_are_gone_after_their_time_at_a_site_that_is_asked_nothing_more(
    site: GuardSite, guard: RunningGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = site.worker.begin(instruction(STUDY), signed(STUDY))
    assert isinstance(grant, Grant)
    site.worker.seal(grant.receipt, update())
    stored = site.settings.replies_folder
    monkeypatch.setattr(guard.service.replies, "_clock", lambda: utc_now() + timedelta(hours=25))

    guard.service.forget_old()

    assert list(stored.glob("*.payload")) == []
    assert len(list(stored.glob("*.json"))) == 1
    with pytest.raises(ProtocolError, match="answered once"):
        site.worker.begin(instruction(STUDY), signed(STUDY))


def test_the_guards_process_looks_for_old_bytes_by_itself() -> None:
    assert guard_main.PRUNE_SECONDS <= 3600


def test_a_refused_instruction_stands_in_the_journal(site: GuardSite, guard: RunningGuard) -> None:
    with pytest.raises(ProtocolError):
        site.worker.begin(altered(round=99), signed(STUDY))

    refused = [e for e in read_events(site.settings.audit_path) if e.action.endswith("refused")]
    assert [event.fields["round"] for event in refused] == [99]


def damaged(flag: int = 0, method: int | None = None) -> bytes:
    """A bundle whose members cannot be unpacked, under the digest that it claims."""
    content = bytearray(bundle())
    with zipfile.ZipFile(BytesIO(bundle())) as archive:
        start = archive.start_dir
    local = content.index(b"PK\x03\x04")
    if method is not None:
        content[local + 8] = content[start + 10] = method
    content[local + 6] |= flag
    content[start + 8] |= flag
    if not flag and method is None:
        content[local + 30 + 14 : local + 30 + 40] = os.urandom(26)
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [damaged(), damaged(flag=1), damaged(method=12), damaged(method=14), damaged(method=99)],
    ids=["deflate", "encrypted", "bzip2", "lzma", "unknown"],
)
def test_a_bundle_that_cannot_be_unpacked_is_refused_and_is_no_defect(content: bytes) -> None:
    with pytest.raises(ProtocolError):
        check_bundle(Bundle(sha256=sha256_hex(content), content=content))


@pytest.mark.parametrize("value", [{"\ud800": 1}, "\ud800", 2**60, float("nan"), {1: 2}])
def test_what_has_no_canonical_form_is_a_protocol_error_without_the_value(value: object) -> None:
    with pytest.raises(ProtocolError) as caught:
        canonical_json(value)

    assert str(caught.value) == "expected a JSON value, found one that has no canonical form"
