"""The registry of sites: reachable, at the present schema, and whose certificates end soon."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from fedward_common.doctor import EXPIRY_MARGIN, Finding, fail, ok, warn
from fedward_common.ids import SiteId
from fedward_server.adapters.registry import MIGRATIONS, SqlRegistry
from fedward_server.enrolment_rules import must_listen
from fedward_server.ports import InviteRecord, RequestRecord

REPAIR: Final = "Restore the registry from the newest copy, or correct database in the settings"


@dataclass(frozen=True, kw_only=True, slots=True)
class Registry:
    """What could be read of the registry; the database is left as it is.

    `state`: `none` before the first start, `old` or `new` where its schema is not this version's.
    `ends` has the active sites that enrolled, and when their certificates end.
    """

    state: Literal["good", "none", "old", "new", "broken"]
    error: str = ""
    active: int = 0
    ends: tuple[tuple[SiteId, datetime], ...] = ()
    invites: tuple[InviteRecord, ...] = ()
    requests: tuple[RequestRecord, ...] = ()
    has_password: bool = False

    @classmethod
    def read(cls, url: str) -> "Registry":
        """The registry at `url`, whatever state it is in."""
        try:
            parsed = make_url(url)
            password = parsed.password is not None
            if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
                return cls(state="none", has_password=password)
            engine = create_engine(parsed)
        except (SQLAlchemyError, ModuleNotFoundError, ValueError) as error:
            return cls(state="broken", error=type(error).__name__)
        try:
            if (state := _schema(engine)) != "good":
                return cls(state=state, has_password=password)
            return _contents(SqlRegistry(engine), has_password=password)
        except (SQLAlchemyError, ValueError) as error:
            return cls(state="broken", error=type(error).__name__, has_password=password)
        finally:
            engine.dispose()


def _schema(engine: Engine) -> Literal["good", "none", "old", "new"]:
    """How the database's schema stands to the one of this version."""
    configuration = Config()
    configuration.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(configuration)
    with engine.connect() as connection:
        present = MigrationContext.configure(connection).get_current_revision()
        if present is None and not inspect(connection).get_table_names():
            return "none"
    if present == scripts.get_current_head():
        return "good"
    known = {script.revision for script in scripts.walk_revisions()}
    return "old" if present is None or present in known else "new"


def _contents(sites: SqlRegistry, *, has_password: bool) -> Registry:
    active = sites.active_sites()
    certificates = ((site.site_id, sites.present_certificate(site.site_id)) for site in active)
    return Registry(
        state="good",
        active=len(active),
        ends=tuple((site, one.not_after) for site, one in certificates if one is not None),
        invites=tuple(sites.book.invites()),
        requests=tuple(sites.book.requests()),
        has_password=has_password,
    )


def registry(name: str, found: Registry | str) -> Finding:
    """Whether the registry can be read and has this version's schema and an active site."""
    if isinstance(found, str):
        found = Registry.read(found)
    match found.state:
        case "none":
            return ok(name, "none yet: made at the first start")
        case "broken":
            return fail(name, f"cannot be read ({found.error})", REPAIR)
        case "old":
            return warn(
                name,
                "has the schema of an earlier version",
                "Keep a copy of it, then start `fedward-server serve`: it brings it up to date",
            )
        case "new":
            return fail(
                name,
                "has the schema of a later version",
                "Install the later version again, or restore the copy from before it",
            )
    if found.active == 0:
        return warn(name, "no active site", "Invite the hospitals: fedward-server site invite")
    return ok(name, f"{found.active} active sites")


def site_certificates(name: str, found: Registry, *, now: datetime) -> Finding:
    """Whether a site's certificate ends soon: it should have renewed it by itself long before."""
    late = sorted(site for site, ends in found.ends if ends - now < EXPIRY_MARGIN)
    if late:
        return warn(
            name,
            f"certificates that end within {EXPIRY_MARGIN.days} days or have ended: "
            f"{', '.join(late)}",
            "Ask those hospitals: their gateway renews at two thirds of a certificate's life. One "
            "that has ended needs a new invite",
        )
    return ok(name, f"{len(found.ends)} certificates are good for {EXPIRY_MARGIN.days} days")


def joins_expected(found: Registry, *, now: datetime) -> bool:
    """Whether a hospital may come to the enrolment listener now."""
    return must_listen(found.invites, found.requests, now=now)
