"""The hospital's half of enrolment against the coordinator's real listener, in its own process."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_client.doctor import examine_site
from fedward_client.enrol import Places, SiteOptions, enrol, install_grant, write_request
from fedward_client.enrol.flow import World
from fedward_client.settings import load_site_settings
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.channel.tls import CIPHER_VARIABLE, TLS13_ONLY
from fedward_common.errors import StartError
from fedward_common.ids import SiteId
from fedward_common.trust.certificates import parse_peer_certificate
from fedward_server.site_commands import export_grant, import_request, review_site
from tests.support.enrolment_process import Listener, running_listener


@pytest.fixture(autouse=True)
def tls13(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test of this process may have imported grpc already."""
    monkeypatch.setenv(CIPHER_VARIABLE, TLS13_ONLY)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    with running_listener(tmp_path_factory.mktemp("hub")) as running:
        yield running


def world(hub: Listener, site: str | None) -> World:
    """Real time, shortened; the operators of `site` decide while the hospital waits."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1 and site is not None:
            hub.grant(site)
        time.sleep(0.5)

    return World(sleep=sleep)


def test_a_hospital_joins_over_the_network(hub: Listener, tmp_path: Path) -> None:
    places, said = Places.of(tmp_path / "site.toml", SiteOptions()), list[str]()

    made = enrol(
        hub.invite("alpha"), places, SiteOptions(), say=said.append, world=world(hub, "alpha")
    )

    settings = load_site_settings(tmp_path / "site.toml")
    record = hub.registry.find(SiteId("alpha"))
    own = parse_peer_certificate(settings.keys.tls_certificate.read_bytes())
    assert record is not None
    assert record.certificate_sha256 == own.fingerprint_sha256
    assert len(made.granted_by) == 2
    findings = {finding.name: finding.level for finding in examine_site(settings.source).findings}
    assert {name: findings[name] for name in findings if name.startswith(("key.", "cert"))} == {
        name: "ok" for name in findings if name.startswith(("key.", "cert"))
    }


def test_both_sides_show_the_same_words_and_a_stopped_wait_goes_on(
    hub: Listener, tmp_path: Path
) -> None:
    invite, said = hub.invite("beta"), list[str]()
    places = Places.of(tmp_path / "site.toml", SiteOptions())
    with pytest.raises(StartError, match="Run the same command again"):
        enrol(
            invite,
            places,
            SiteOptions(),
            say=said.append,
            wait_seconds=5,
            world=world(hub, None),
        )
    assert f"    {review_site(hub.settings, 'beta')['words']}" in said
    hub.grant("beta")

    made = enrol(invite, places, SiteOptions(), say=said.append, world=world(hub, None))

    assert made.site == "beta"


def test_a_hospital_joins_by_two_carried_files(hub: Listener, tmp_path: Path) -> None:
    places, carried, grant = (
        Places.of(tmp_path / "site.toml", SiteOptions()),
        tmp_path / "request.json",
        tmp_path / "grant.json",
    )
    write_request(hub.invite("gamma"), places, SiteOptions(), out=carried, say=lambda _: None)
    import_request(hub.settings, carried)
    hub.grant("gamma")
    export_grant(hub.settings, "gamma", grant)

    made = install_grant(grant, places, SiteOptions())

    assert (made.site, load_site_settings(places.config).site) == ("gamma", "gamma")


def test_an_invite_that_was_used_by_somebody_else_is_said_in_its_words(
    hub: Listener, tmp_path: Path
) -> None:
    invite = hub.invite("delta")
    for folder, expected in (("one", None), ("two", Refusal.INVITE_USED)):
        places = Places.of(tmp_path / folder / "site.toml", SiteOptions())
        with pytest.raises((StartError, CallRefused)) as raised:
            enrol(
                invite,
                places,
                SiteOptions(),
                say=lambda _: None,
                wait_seconds=0,
                world=world(hub, None),
            )
        assert getattr(raised.value, "refusal", None) is expected
