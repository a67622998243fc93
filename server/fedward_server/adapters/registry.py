"""The registry of sites in a SQL database: SQLite by default, any SQLAlchemy URL."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, String, Update, create_engine, event, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from fedward_common.errors import ConfigError, StartError
from fedward_common.ids import Digest, SiteId
from fedward_server.ports import SiteRecord, SiteStatus

MIGRATIONS: Final = Path(__file__).parent / "migrations"


class Base(DeclarativeBase):
    """The tables of the registry; `migrations` is how a database comes to have them."""


class SiteRow(Base):
    """One site, one row."""

    __tablename__ = "sites"

    site_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    certificate_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    node_public_key: Mapped[str] = mapped_column(String(1024), unique=True)
    signing_public_key: Mapped[str] = mapped_column(String(64), unique=True)
    status: Mapped[str] = mapped_column(String(16))


class SqlRegistry:
    """Implements `Roster`; the only writer of the sites table."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, record: SiteRecord) -> None:
        """Registers a new site.

        Raises:
            ConfigError: the site, its certificate or one of its keys is registered already.
        """
        row = SiteRow(
            site_id=record.site_id,
            certificate_sha256=record.certificate_sha256,
            node_public_key=record.node_public_key,
            signing_public_key=record.signing_public_key,
            status=record.status.value,
        )
        try:
            with Session(self._engine) as session, session.begin():
                session.add(row)
        except IntegrityError as error:
            raise ConfigError(
                f"site {record.site_id}: expected a new site with its own certificate and keys, "
                "found one of them registered already"
            ) from error

    def find(self, site_id: SiteId) -> SiteRecord | None:
        """The record of a site, revoked or not, or None."""
        with Session(self._engine) as session:
            row = session.get(SiteRow, site_id)
            return None if row is None else _record(row)

    def sites(self) -> list[SiteRecord]:
        """Every site, revoked ones too, by id."""
        with Session(self._engine) as session:
            return [_record(row) for row in session.scalars(select(SiteRow).order_by("site_id"))]

    def active_sites(self) -> list[SiteRecord]:
        """The sites that pass the edge, by id."""
        return [record for record in self.sites() if record.status is SiteStatus.ACTIVE]

    def renew(self, site_id: SiteId, *, certificate_sha256: Digest) -> None:
        """Replaces the certificate of an active site; the former one stops passing at once.

        Raises:
            ConfigError: no such active site, or another site has this certificate.
        """
        statement = update(SiteRow).where(
            SiteRow.site_id == site_id, SiteRow.status == SiteStatus.ACTIVE.value
        )
        try:
            self._change(site_id, statement.values(certificate_sha256=certificate_sha256))
        except IntegrityError as error:
            raise ConfigError(
                f"site {site_id}: expected a certificate of its own, found another site's"
            ) from error

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
        engine = create_engine(url)
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
    except OperationalError as error:
        raise StartError(
            "database: expected the registry to open, found "
            f"{type(error.orig).__name__}. Check the URL and the rights on its folder"
        ) from error


def _migrate(engine: Engine) -> None:
    configuration = Config()
    configuration.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with engine.begin() as connection:
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "head")


def _prepare_sqlite(connection: Any, _record_of_pool: object) -> None:  # a DB-API connection
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()


def _record(row: SiteRow) -> SiteRecord:
    return SiteRecord(
        site_id=SiteId(row.site_id),
        certificate_sha256=Digest(row.certificate_sha256),
        node_public_key=row.node_public_key,
        signing_public_key=row.signing_public_key,
        status=SiteStatus(row.status),
    )
