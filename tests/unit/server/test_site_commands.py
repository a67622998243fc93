"""What operators type, on a coordinator that `init` made; each mistake says what to do."""

import json
from pathlib import Path

import pytest

from fedward_common.channel.refusals import Refusal
from fedward_common.errors import ConfigError
from fedward_common.log.events import read_events, verify
from fedward_common.trust.enrolment import Invite
from fedward_server.enrolment_rules import EnrolmentRefused
from fedward_server.settings import CoordinatorSettings
from fedward_server.site_commands import (
    Operator,
    grant_site,
    import_request,
    invite_site,
    list_sites,
    review_site,
)
from tests.support.enrolling import NewSite
from tests.support.enrolment_process import new_coordinator


@pytest.fixture
def hub(tmp_path: Path) -> CoordinatorSettings:
    return new_coordinator(tmp_path)


def carried(hub: CoordinatorSettings, folder: Path) -> NewSite:
    site = NewSite()
    invite = Invite.parse(invite_site(hub, "alpha", out=None))
    (folder / "request.json").write_bytes(site.carried(invite).canonical)
    import_request(hub, folder / "request.json")
    return site


def ada(folder: Path) -> Operator:
    return Operator(name="Ada", key_file=folder / "Ada.pem")


def test_an_invite_in_a_file_is_its_owners_only(hub: CoordinatorSettings, tmp_path: Path) -> None:
    text = invite_site(hub, "alpha", out=tmp_path / "invite")

    assert (tmp_path / "invite").read_text() == text + "\n"
    assert (tmp_path / "invite").stat().st_mode & 0o077 == 0
    assert Invite.parse(text).address == hub.enrolment.address


def test_what_operators_do_is_one_chain_in_their_log(
    hub: CoordinatorSettings, tmp_path: Path
) -> None:
    carried(hub, tmp_path)
    heard = review_site(hub, "alpha")["words"]
    grant_site(hub, "alpha", ada(tmp_path), compared=heard.upper().replace("-", " "))
    with pytest.raises(EnrolmentRefused):
        grant_site(hub, "alpha", ada(tmp_path), compared=heard)

    actions = [event.action for event in read_events(hub.desk_log)]

    assert verify(hub.desk_log).entries == 4
    assert actions == ["site.invited", "site.requested", "site.grant-signed", "site.refused"]


def test_the_list_shows_invited_waiting_and_members(
    hub: CoordinatorSettings, tmp_path: Path
) -> None:
    invite_site(hub, "beta", out=None)
    carried(hub, tmp_path)
    before = {entry["site"]: entry["status"] for entry in list_sites(hub)}
    heard = review_site(hub, "alpha")["words"]
    for name in ("Ada", "Ben"):
        who = Operator(name=name, key_file=tmp_path / f"{name}.pem")
        done = grant_site(hub, "alpha", who, compared=heard)

    after = {entry["site"]: entry for entry in list_sites(hub)}

    assert before["alpha"] == "waits for operators"
    assert before["beta"].startswith("invited until 20")
    assert after["alpha"]["status"] == "active"
    assert after["alpha"]["certificate_sha256"] == done["certificate_sha256"]
    assert after["alpha"]["granted_by"] == ["Ada", "Ben"]
    assert done["registered"] is False  # no coordinator runs here
    assert json.dumps(list_sites(hub))


def test_the_words_of_another_request_grant_nothing(
    hub: CoordinatorSettings, tmp_path: Path
) -> None:
    carried(hub, tmp_path)

    for heard in ("", "amber", NewSite().request().fingerprint_words):
        with pytest.raises(ConfigError, match="found others"):
            grant_site(hub, "alpha", ada(tmp_path), compared=heard)
    assert review_site(hub, "alpha")["granted_by"] == []


def test_a_federation_with_too_few_operators_says_so(
    hub: CoordinatorSettings, tmp_path: Path
) -> None:
    carried(hub, tmp_path)
    alone = hub.model_copy(update={"operators": hub.operators[:1]})
    heard = review_site(hub, "alpha")["words"]

    with pytest.raises(ConfigError, match="operators_needed = 2"):
        grant_site(alone, "alpha", ada(tmp_path), compared=heard)


def test_a_coordinator_without_an_address_for_sites_says_so(
    hub: CoordinatorSettings, tmp_path: Path
) -> None:
    nowhere = hub.model_copy(
        update={
            "address": None,
            "enrolment": hub.enrolment.model_copy(update={"listen": None, "address": None}),
        }
    )

    with pytest.raises(ConfigError, match="expected host:port for sites"):
        invite_site(nowhere, "alpha", out=None)
    with pytest.raises(ConfigError, match="expected host:port of the edge"):
        grant_site(nowhere, "alpha", ada(tmp_path), compared="")


def test_a_file_that_is_no_carried_request_is_refused_and_logged(
    hub: CoordinatorSettings, tmp_path: Path
) -> None:
    (tmp_path / "other.json").write_bytes(b"\0" * 300_000)

    with pytest.raises(EnrolmentRefused) as caught:
        import_request(hub, tmp_path / "other.json")
    with pytest.raises(ConfigError, match="expected a carried request"):
        import_request(hub, tmp_path / "missing.json")
    assert caught.value.refusal is Refusal.MALFORMED
    assert [event.fields["code"] for event in read_events(hub.desk_log)] == ["malformed"]


@pytest.mark.parametrize("name", ["Alpha", "a/b", "", "../alpha"])
def test_a_name_that_is_no_sites_is_refused(hub: CoordinatorSettings, name: str) -> None:
    with pytest.raises(ConfigError, match="site id"):
        invite_site(hub, name, out=None)
