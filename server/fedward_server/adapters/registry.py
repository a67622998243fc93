"""The registry of sites in a SQL database: SQLite by default, any SQLAlchemy URL."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, Update, create_engine, event, func, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.orm import Session

from fedward_common.errors import ConfigError, StartError
from fedward_common.ids import Digest, SiteId
from fedward_server.adapters.enrolment_book import SqlEnrolmentBook
from fedward_server.adapters.registry_tables import Base, KeyRow, SiteRow
from fedward_server.adapters.registry_values import (
    certificate_row,
    row_of_site,
    site_record,
)
from fedward_server.ports import CertificateRecord, SiteRecord, SiteStatus

__all__ = ["Base", "SqlRegistry", "open_registry"]

MIGRATIONS: Final = Path(__file__).parent / "migrations"
MIGRATION_LOCK: Final = 0x66656477
"""The PostgreSQL advisory lock under which one process at a time migrates."""


class SqlRegistry:
    """Implements `Roster`; `book` is the same database's `EnrolmentBook`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.book = SqlEnrolmentBook(engine)

    def add(self, record: SiteRecord) -> None:
        """Registers a new site.

        Raises:
            ConfigError: the site, its certificate or one of its keys is registered already.
        """
        try:
            with Session(self._engine) as session, session.begin():
                session.add(row_of_site(record))
        except IntegrityError as error:
            raise ConfigError(
                f"site {record.site_id}: expected a new site with its own certificate and keys, "
                "found one of them registered already"
            ) from error

    def find(self, site_id: SiteId) -> SiteRecord | None:
        """The record of a site, revoked or not, or None."""
        with Session(self._engine) as session:
            row = session.get(SiteRow, site_id)
            return None if row is None else site_record(row)

    def sites(self) -> list[SiteRecord]:
        """Every site, revoked ones too, by id."""
        with Session(self._engine) as session:
            rows = session.scalars(select(SiteRow).order_by(SiteRow.site_id))
            return [site_record(row) for row in rows]

    def active_sites(self) -> list[SiteRecord]:
        """The sites that pass the edge, by id."""
        return [record for record in self.sites() if record.status is SiteStatus.ACTIVE]

    def revoked_sites(self) -> list[SiteId]:
        """The sites whose membership was ended, by id."""
        return [record.site_id for record in self.sites() if record.status is SiteStatus.REVOKED]

    def renew(self, site_id: SiteId, certificate: CertificateRecord) -> None:
        """Gives an active site a further certificate; the one it uses now passes until `seen`.

        A site that renews again before it used the new one keeps the one it uses.

        Raises:
            ConfigError: no such active site, or the certificate or its key was used before.
        """
        new = certificate.certificate_sha256
        statement = (
            update(SiteRow)
            .where(SiteRow.site_id == site_id, SiteRow.status == SiteStatus.ACTIVE.value)
            .values(
                previous_certificate_sha256=func.coalesce(
                    SiteRow.previous_certificate_sha256, SiteRow.certificate_sha256
                ),
                certificate_sha256=new,
            )
        )
        try:
            with Session(self._engine) as session, session.begin():
                session.add(certificate_row(site_id, certificate))
                session.add(KeyRow(key_sha256=certificate.key_sha256, site_id=site_id, kind="tls"))
                session.flush()
                if session.execute(statement).rowcount != 1:  # type: ignore[attr-defined]
                    raise ConfigError(f"site {site_id}: expected an active site, found none")
        except IntegrityError as error:
            raise ConfigError(
                f"site {site_id}: expected a new certificate for a new key, found one of them used"
            ) from error

    def seen(self, site_id: SiteId, certificate_sha256: Digest) -> None:
        """Ends the overlap of a renewal: from now on only the present certificate passes.

        Nothing changes when `certificate_sha256` is not the site's present certificate.
        """
        statement = update(SiteRow).where(
            SiteRow.site_id == site_id, SiteRow.certificate_sha256 == certificate_sha256
        )
        with self._engine.begin() as connection:
            connection.execute(statement.values(previous_certificate_sha256=None))

    def present_certificate(self, site_id: SiteId) -> CertificateRecord | None:
        """The site's present certificate, if it was issued by enrolment or renewal."""
        return self.book.present_certificate(site_id)

    def revoke(self, site_id: SiteId) -> None:
        """Ends a site's membership: its next call, on whatever connection, is refused.

        Raises:
            ConfigError: no such site.
        """
        statement = update(SiteRow).where(SiteRow.site_id == site_id)
        self._change(site_id, statement.values(status=SiteStatus.REVOKED.value))

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def _change(self, site_id: SiteId, statement: Update) -> None:
        with self._engine.begin() as connection:
            if connection.execute(statement).rowcount != 1:
                raise ConfigError(f"site {site_id}: expected it in the registry, found nothing")


def open_registry(url: str) -> SqlRegistry:
    """The registry at `url`, brought to the present schema.

    Raises:
        ConfigError: `url` is not a database URL.
        StartError: the database cannot be opened.
    """
    try:
        # An error of the database may end up in a log: without the values it was given.
        engine = create_engine(url, hide_parameters=True)
    except (ArgumentError, ModuleNotFoundError) as error:
        raise ConfigError(
            "database: expected a URL such as sqlite:////var/lib/fedward/registry.sqlite, "
            "found something else"
        ) from error
    database = make_url(url).database
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        if database:
            Path(database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _opened():
        _migrate(engine)
    return SqlRegistry(engine)


@contextmanager
def _opened() -> Iterator[None]:
    try:
        yield
    # By driver: a wrong password or database is a programming error, a refused connection an
    # interface error.
    except (OperationalError, ProgrammingError, InterfaceError) as error:
        raise StartError(
            "database: expected the registry to open, found "
            f"{type(error.orig).__name__}. Check the URL and the rights on its folder"
        ) from error


def _migrate(engine: Engine) -> None:
    configuration = Config()
    configuration.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "head")


def _prepare_sqlite(connection: Any, _record_of_pool: object) -> None:  # a DB-API connection
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()
