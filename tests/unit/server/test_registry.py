"""The registry in SQL: its schema, its file, its errors. What it promises is in tests/contract."""

import stat
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, inspect, text

from fedward_common.errors import ConfigError, StartError
from fedward_common.ids import SiteId
from fedward_server.adapters.registry import MIGRATIONS, Base, open_registry
from tests.support.pki import Authority


def test_the_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    open_registry(f"sqlite:///{tmp_path}/r.sqlite").close()

    found = inspect(create_engine(f"sqlite:///{tmp_path}/r.sqlite"))

    for table in Base.metadata.sorted_tables:
        columns = {column["name"]: column for column in found.get_columns(table.name)}
        assert columns.keys() == set(table.columns.keys())
        for column in table.columns:
            assert columns[column.name]["nullable"] == column.nullable
            assert str(columns[column.name]["type"]) == str(column.type)


def test_sites_of_the_first_schema_are_kept_when_it_is_brought_up_to_date(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/r.sqlite"
    record = Authority().site("alpha").record
    engine = create_engine(url)
    configuration = Config()
    configuration.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "0001")
        connection.execute(
            text("INSERT INTO sites VALUES (:site, :certificate, :node, :signing, 'active')"),
            {
                "site": record.site_id,
                "certificate": record.certificate_sha256,
                "node": record.node_public_key,
                "signing": record.signing_public_key,
            },
        )
    engine.dispose()

    registry = open_registry(url)

    assert registry.sites() == [record]
    assert registry.present_certificate(SiteId("alpha")) is None


def test_a_registry_keeps_its_sites_when_it_is_opened_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/r.sqlite"
    record = Authority().site("alpha").record
    first = open_registry(url)
    first.add(record)
    first.close()

    assert open_registry(url).find(SiteId("alpha")) == record


def test_a_change_by_one_process_is_seen_by_another_at_once(tmp_path: Path) -> None:
    """The edge must learn of a revocation without being told."""
    url = f"sqlite:///{tmp_path}/r.sqlite"
    edge, operator = open_registry(url), open_registry(url)
    operator.add(Authority().site("alpha").record)
    assert len(edge.active_sites()) == 1

    operator.revoke(SiteId("alpha"))

    assert edge.active_sites() == []


def test_the_folder_of_the_database_is_made_for_its_owner_only(tmp_path: Path) -> None:
    open_registry(f"sqlite:///{tmp_path}/state/r.sqlite").close()

    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


@pytest.mark.parametrize("url", ["", "no url", "nosuchdialect://x", "postgresql+nosuchdriver://x"])
def test_a_text_that_is_no_database_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="database: expected a URL"):
        open_registry(url)


def test_a_database_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "r.sqlite").mkdir()

    with pytest.raises(StartError, match="database: expected the registry to open"):
        open_registry(f"sqlite:///{tmp_path}/r.sqlite")
