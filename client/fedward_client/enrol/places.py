"""Where enrolment puts what it makes, and what a person chose of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from fedward_client.settings import SiteSettings, load_site_settings
from fedward_common.errors import ConfigError
from fedward_common.users import Account

SYSTEM_CONFIG: Final = Path("/etc/fedward/site.toml")
SYSTEM_STATE: Final = Path("/var/lib/fedward")
SYSTEM_RUN: Final = Path("/run/fedward")


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteOptions:
    """What a person says at enrolment beside the invite; it all goes into site.toml."""

    proxy: str | None = None
    proxy_auth_file: Path | None = None
    passphrase_file: Path | None = None
    state: Path | None = None
    run: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """The files of one site. `present` are the settings of a site that enrols again."""

    config: Path
    state: Path
    run: Path
    tls_certificate: Path
    tls_key: Path
    ca: Path
    node_key: Path
    signing_key: Path
    secagg_key: Path
    present: SiteSettings | None = None

    @classmethod
    def of(cls, config: Path, options: SiteOptions) -> Self:
        """The places for a site whose settings are (to be) in `config`.

        A site.toml that is there keeps its places and its keys: its TLS key alone is made anew, as
        after a certificate that ended.

        Raises:
            ConfigError: the site.toml that is there cannot be read or names no key for secure
                aggregation.
        """
        config = config.absolute()
        if config.exists():
            return cls._again(config, load_site_settings(config))
        system = config == SYSTEM_CONFIG
        state = options.state or (SYSTEM_STATE if system else config.parent / "state")
        run = options.run or (SYSTEM_RUN if system else config.parent / "run")
        keys = state.absolute() / "keys"
        return cls(
            config=config,
            state=state.absolute(),
            run=run.absolute(),
            # A folder of its own: who renews the pair may write there, and nowhere else.
            tls_certificate=keys / "tls" / "tls.pem",
            tls_key=keys / "tls" / "tls.key",
            ca=keys / "ca.pem",
            node_key=keys / "node.key",
            signing_key=keys / "signing.pem",
            secagg_key=keys / "secagg.pem",
        )

    @classmethod
    def _again(cls, config: Path, settings: SiteSettings) -> Self:
        keys = settings.keys
        return cls(
            config=config,
            state=settings.folders.state,
            run=settings.folders.run,
            tls_certificate=keys.tls_certificate,
            tls_key=keys.tls_key,
            ca=keys.ca,
            node_key=keys.node_key,
            signing_key=keys.signing_key,
            secagg_key=keys.secagg_key or keys.signing_key.with_name("secagg.pem"),
            present=settings,
        )

    @property
    def folder(self) -> Path:
        """What is kept of the enrolment: the request, the invite without its token, the grant."""
        return self.state / "enrolment"

    @property
    def request(self) -> Path:
        """The request as it was sent."""
        return self.folder / "request.json"

    @property
    def invited(self) -> Path:
        """The invite without its token."""
        return self.folder / "invited.json"

    @property
    def grant(self) -> Path:
        """The coordinator's answer, with the operators' signatures."""
        return self.folder / "grant.json"

    @property
    def public_node_key(self) -> Path:
        """The public half of the node key, for processes that may not read the key."""
        return self.node_key.with_name(f"{self.node_key.name}.pub")

    def require_config(self) -> None:
        """Returns when site.toml can be written where it is to be.

        Raises:
            ConfigError: it cannot: said before a key is made.
        """
        with _writable():
            self.config.parent.mkdir(parents=True, exist_ok=True)
            if self.present is None:
                _probe(self.config.parent)

    def make_folders(self) -> None:
        """Makes the folders for keys and evidence, each 0700.

        Raises:
            ConfigError: one cannot be made or written to: said before a key is made.
        """
        keys = (self.tls_key, self.tls_certificate, self.node_key, self.signing_key)
        folders = {path.parent for path in (*keys, self.secagg_key, self.ca)} | {self.folder}
        with _writable():
            for folder in (self.state, *sorted(folders)):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in folders:
                _probe(folder)

    def owner(self) -> Account | None:
        """Whose the keys' folder is (or else the state folder), where root enrols for a user.

        What enrolment makes in there is that user's from the first byte on. None: our own.
        """
        folder = next((f for f in (self.node_key.parent, self.state) if f.is_dir()), None)
        if os.geteuid() != 0 or folder is None:
            return None
        found = folder.stat()
        if found.st_uid == 0:
            return None
        return Account(name=f"#{found.st_uid}", uid=found.st_uid, gid=found.st_gid)


@contextmanager
def _writable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: expected a folder that this user may write to, found "
            f"{error.strerror}. Run enrol as the user that runs Fedward, or name other folders"
        ) from error


def _probe(folder: Path) -> None:
    probe = folder / ".enrol"
    probe.touch(mode=0o600)
    probe.unlink()
