"""The users of a site's processes: four of their own, or one for all (rules 14)."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedward_client.adapters.key_files import read_node_key, read_passphrase
from fedward_client.settings import SiteSettings
from fedward_common.errors import ConfigError
from fedward_common.users import Account, find_account, group_id, user_id


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteAccounts:
    """Whose each process is; all None where the site runs under one user."""

    guard: Account | None = None
    gateway: Account | None = None
    node: Account | None = None
    worker: Account | None = None
    group: int | None = None

    @classmethod
    def of(cls, settings: SiteSettings) -> Self:
        """The accounts that [guard] names, for a process that is about to start the others.

        Raises:
            ConfigError: root and not all named, named twice or root itself; or another user than
                root, and somebody else is named.
        """
        names = named_users(settings)
        if not any(names.values()):
            return cls()
        if os.geteuid() != 0:
            _require_ours(names)
            return cls()
        users = {key: name for key, name in names.items() if name is not None}
        missing, group = sorted(set(names) - set(users)), settings.guard.group
        if missing or group is None:
            raise ConfigError(
                f"[guard]: expected {', '.join(names)} and group together, found no "
                f"{', '.join(missing) or 'group'}. Name all of them, or none"
            )
        found = {
            key: find_account(name, group=group, key=f"[guard] {key}")
            for key, name in users.items()
        }
        ids = [account.uid for account in found.values()]
        if len(set(ids)) < len(ids) or 0 in ids:
            raise ConfigError(
                "[guard]: expected four different users and none of them root, found otherwise. "
                "Each holds what the others must not reach"
            )
        return cls(
            guard=found["guard_user"],
            gateway=found["gateway_user"],
            node=found["node_user"],
            worker=found["worker_user"],
            group=group_id(group, key="[guard] group"),
        )

    @property
    def separate(self) -> bool:
        """Whether each process is a user of its own."""
        return self.guard is not None


def named_users(settings: SiteSettings) -> dict[str, str | None]:
    """Key of [guard] -> the user it names."""
    guard = settings.guard
    return {
        "guard_user": guard.guard_user,
        "gateway_user": guard.gateway_user,
        "node_user": guard.node_user,
        "worker_user": guard.worker_user,
    }


def _require_ours(names: dict[str, str | None]) -> None:
    for key, name in names.items():
        if name is not None and user_id(name, key=f"[guard] {key}") != os.geteuid():
            raise ConfigError(
                f"[guard] {key}: expected root to start a site whose processes are users of their "
                f"own ({name}), found user {os.geteuid()}. Start it as root, start each process by "
                "its own service unit, or remove the names: then one user holds everything"
            )


def public_node_key_file(settings: SiteSettings) -> Path:
    """Where the public half of the node key lies, for processes that may not read the key."""
    key = settings.keys.node_key
    return key.with_name(f"{key.name}.pub")


def node_public_key(settings: SiteSettings) -> str:
    """The `flwr-public-key` of this site's SuperNode, without reading the key where it can.

    Raises:
        ConfigError: there is no public half, and this user may not read the key.
    """
    try:
        return public_node_key_file(settings).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        passphrase = read_passphrase(settings.keys.passphrase_file)
        return read_node_key(settings.keys.node_key, passphrase=passphrase).header
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{public_node_key_file(settings)}: expected the public node key, found "
            f"{type(error).__name__}. Remove the file; it is written again at the next start"
        ) from error
