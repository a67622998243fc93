"""What a person of the hospital decides: signed with their own key here, in force at the guard.

The guard's socket proves which user of this machine brought a statement; the signature proves who
decided. A key is read from a private file, never from a command line (rules 16).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedward_client.adapters.key_files import read_passphrase, read_signing_key, write_signing_key
from fedward_client.guard.client import GuardClient
from fedward_client.guard.main import policy_of
from fedward_client.settings import SiteSettings
from fedward_client.studies import Known
from fedward_common.errors import ConfigError
from fedward_common.models.plugins import Plugin, find_plugin
from fedward_common.trust.signing import SigningKey
from fedward_common.trust.statements import Statement

TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Somebody under [[approvers]] and the file of their key."""

    name: str
    key_file: Path
    passphrase_file: Path | None = None


def new_approver(name: str, key_file: Path, *, passphrase_file: Path | None = None) -> str:
    """Makes a person's key in `key_file` and returns their lines for site.toml.

    Raises:
        ConfigError: there is a file already, or the name has a form that statements do not take.
    """
    if not name.strip() or not name.isprintable() or '"' in name or "\\" in name:
        raise ConfigError("approver: expected a name of printable signs without quotes")
    key = SigningKey.generate()
    write_signing_key(key_file, key, passphrase=read_passphrase(passphrase_file))
    return f'[[approvers]]\nname = "{name}"\npublic_key = "{key.public_hex}"\n'


def approve(settings: SiteSettings, known: Known, person: Person, *, now: datetime) -> str:
    """Approves a study; the digest of the statement, in force from now on."""
    study = known.study
    said = _signed(
        settings, "study-approval", {"study": study.digest, "study_id": study.id}, person, now
    )
    return _guard(settings).record(said.canonical, known.signed.canonical)


def revoke(
    settings: SiteSettings, digest: str, study_id: str, person: Person, *, now: datetime
) -> str:
    """Takes the approval of a study back; nothing of it leaves from now on."""
    facts = {"study": digest, "study_id": study_id}
    return _record(settings, _signed(settings, "study-revocation", facts, person, now))


def pause(settings: SiteSettings, person: Person, *, now: datetime) -> str:
    """Stops everything: nothing but refusals leaves from now on."""
    return _record(settings, _signed(settings, "pause", {}, person, now))


def resume(settings: SiteSettings, person: Person, *, now: datetime) -> str:
    """Ends a pause."""
    return _record(settings, _signed(settings, "resume", {}, person, now))


def approve_bundle(settings: SiteSettings, sha256: str, person: Person, *, now: datetime) -> str:
    """Lets the app bundle with this digest reach SuperNode."""
    return _record(settings, _signed(settings, "bundle-approval", {"bundle": sha256}, person, now))


def revoke_bundle(settings: SiteSettings, sha256: str, person: Person, *, now: datetime) -> str:
    """Keeps the app bundle with this digest out again."""
    facts = {"bundle": sha256}
    return _record(settings, _signed(settings, "bundle-revocation", facts, person, now))


def approve_plugin(settings: SiteSettings, model: str, person: Person, *, now: datetime) -> Plugin:
    """Lets the installed plugin for `model` run, with exactly the files that it has now.

    Raises:
        ConfigError: no installed package brings the model.
    """
    plugin = find_plugin(model)
    if plugin is None:
        raise ConfigError(
            f"model {model!r}: expected an installed plugin that brings it, found none"
        )
    _record(settings, _signed(settings, "plugin-approval", _facts(plugin), person, now))
    return plugin


def revoke_plugin(settings: SiteSettings, model: str, person: Person, *, now: datetime) -> None:
    """Takes back every approval of a plugin for `model`, whatever is installed.

    Raises:
        ConfigError: none is approved.
    """
    approved = policy_of(settings).standing.plugins(model)
    if not approved:
        raise ConfigError(f"model {model!r}: expected a plugin that was approved, found none")
    for package, version, sha256 in sorted(approved):
        facts = {"model": model, "package": package, "version": version, "sha256": sha256}
        _record(settings, _signed(settings, "plugin-revocation", facts, person, now))


def _facts(plugin: Plugin) -> dict[str, str]:
    return {
        "model": plugin.model,
        "package": plugin.package,
        "version": plugin.version,
        "sha256": plugin.sha256,
    }


def _signed(
    settings: SiteSettings, kind: str, facts: Mapping[str, str], person: Person, now: datetime
) -> Statement:
    key = read_signing_key(person.key_file, passphrase=read_passphrase(person.passphrase_file))
    listed = next((a for a in settings.approvers if a.public_key == key.public_hex), None)
    if listed is None or listed.name != person.name:
        # The guard says the same; here it can name the lines that are missing.
        raise ConfigError(
            f"{person.key_file}: expected the key of {person.name!r} under [[approvers]] in "
            f"{settings.source}, found another. Its public key is {key.public_hex}"
        )
    return Statement.sign(
        kind, {"site": settings.site, **facts}, person=person.name, key=key, now=now
    )


def _record(settings: SiteSettings, said: Statement) -> str:
    return _guard(settings).record(said.canonical)


def _guard(settings: SiteSettings) -> GuardClient:
    return GuardClient(settings.admin_socket, timeout_seconds=TIMEOUT_SECONDS)
