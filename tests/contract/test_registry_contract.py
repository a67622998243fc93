"""What every registry of sites promises; the one in memory is what other tests use."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedward_common.errors import ConfigError
from fedward_common.ids import Digest, SiteId
from fedward_server.adapters.registry import SqlRegistry, open_registry
from fedward_server.ports import SiteRecord, SiteStatus
from tests.support.pki import Authority
from tests.support.roster import InMemoryRegistry

Registry = SqlRegistry | InMemoryRegistry
ALPHA, BETA = SiteId("alpha"), SiteId("beta")
NEW = Digest("e" * 64)


@pytest.fixture(scope="module")
def records() -> dict[SiteId, SiteRecord]:
    authority = Authority()
    return {site: authority.site(site).record for site in (ALPHA, BETA)}


def in_sql(folder: Path) -> Registry:
    return open_registry(f"sqlite:///{folder / 'registry.sqlite'}")


def in_memory(_folder: Path) -> Registry:
    return InMemoryRegistry()


@pytest.fixture(params=[in_sql, in_memory])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    opened: Callable[[Path], Registry] = request.param
    registry = opened(tmp_path)
    yield registry
    registry.close()


def test_a_new_registry_knows_nobody(registry: Registry) -> None:
    assert registry.sites() == []
    assert registry.find(ALPHA) is None


def test_a_site_is_found_as_it_was_added(
    registry: Registry, records: dict[SiteId, SiteRecord]
) -> None:
    registry.add(records[BETA])
    registry.add(records[ALPHA])

    assert registry.find(ALPHA) == records[ALPHA]
    assert registry.sites() == registry.active_sites() == [records[ALPHA], records[BETA]]


@pytest.mark.parametrize(
    "same", ["site_id", "certificate_sha256", "node_public_key", "signing_public_key"]
)
def test_nothing_of_a_site_may_be_another_sites(
    registry: Registry, records: dict[SiteId, SiteRecord], same: str
) -> None:
    registry.add(records[ALPHA])
    twin = replace(records[BETA], **{same: getattr(records[ALPHA], same)})

    with pytest.raises(ConfigError):
        registry.add(twin)
    assert registry.sites() == [records[ALPHA]]


def test_a_revoked_site_stays_in_the_registry_as_revoked(
    registry: Registry, records: dict[SiteId, SiteRecord]
) -> None:
    registry.add(records[ALPHA])
    registry.add(records[BETA])

    registry.revoke(ALPHA)

    assert registry.find(ALPHA) == replace(records[ALPHA], status=SiteStatus.REVOKED)
    assert registry.active_sites() == [records[BETA]]


def test_revoking_twice_is_as_good_as_once(
    registry: Registry, records: dict[SiteId, SiteRecord]
) -> None:
    registry.add(records[ALPHA])
    registry.revoke(ALPHA)

    registry.revoke(ALPHA)

    assert registry.active_sites() == []


def test_renewal_replaces_the_certificate(
    registry: Registry, records: dict[SiteId, SiteRecord]
) -> None:
    registry.add(records[ALPHA])

    registry.renew(ALPHA, certificate_sha256=NEW)

    assert registry.find(ALPHA) == replace(records[ALPHA], certificate_sha256=NEW)


def test_renewal_does_not_bring_a_revoked_site_back(
    registry: Registry, records: dict[SiteId, SiteRecord]
) -> None:
    registry.add(records[ALPHA])
    registry.revoke(ALPHA)

    with pytest.raises(ConfigError):
        registry.renew(ALPHA, certificate_sha256=NEW)


def test_renewal_to_another_sites_certificate_is_refused(
    registry: Registry, records: dict[SiteId, SiteRecord]
) -> None:
    registry.add(records[ALPHA])
    registry.add(records[BETA])

    with pytest.raises(ConfigError):
        registry.renew(ALPHA, certificate_sha256=records[BETA].certificate_sha256)
    assert registry.find(ALPHA) == records[ALPHA]


@pytest.mark.parametrize("change", ["renew", "revoke"])
def test_a_site_that_is_not_there_cannot_be_changed(registry: Registry, change: str) -> None:
    arguments = {"certificate_sha256": NEW} if change == "renew" else {}

    with pytest.raises(ConfigError):
        getattr(registry, change)(ALPHA, **arguments)
