"""Operators: the people who may grant, deny and revoke, each with a key of their own (rules 16)."""

import json
import os
import re
from datetime import datetime
from pathlib import Path

from fedward_common.errors import ConfigError
from fedward_common.trust.private_files import read_credential, write_private
from fedward_common.trust.signing import SigningKey
from fedward_common.trust.statements import PERSON, Statement
from fedward_common.trust.words import words
from fedward_server.settings import CoordinatorSettings


def new_operator(name: str, key_file: Path) -> str:
    """Makes an operator's key in `key_file` (0600) and returns the lines for coordinator.toml.

    Raises:
        ConfigError: there is a file: a key is never replaced; or the name is no person's.
    """
    if not re.fullmatch(PERSON, name):
        raise ConfigError("operator: expected a name of 1 to 120 characters, found another")
    if os.path.lexists(key_file):
        raise ConfigError(f"{key_file}: expected no file, found one. Name another")
    key = SigningKey.generate()
    key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(key_file, key.to_pem())
    return (
        f"# {words(key.public_hex)}\n[[operators]]\n"
        f"name = {json.dumps(name, ensure_ascii=False)}\n"
        f'public_key = "{key.public_hex}"\n'
    )


def read_operator_key(path: Path) -> SigningKey:
    """The operator's key in `path`.

    Raises:
        ConfigError: no such private file, or not such a key.
    """
    return SigningKey.from_pem(read_credential(path, what="operator key"))


def sign_as(
    settings: CoordinatorSettings,
    operator: str,
    key_file: Path,
    *,
    kind: str,
    facts: dict[str, str],
    now: datetime,
) -> Statement:
    """What the operator says, under the key in `key_file`.

    Raises:
        ConfigError: no such operator in coordinator.toml, or the key is another's.
    """
    known = {entry.name: entry.public_key for entry in settings.operators}
    if operator not in known:
        raise ConfigError(
            f"operator {operator!r}: expected one of [[operators]] in coordinator.toml "
            f"({', '.join(known) or 'none yet'}). Make a key with `fedward-server operator new`"
        )
    key = read_operator_key(key_file)
    if key.public_hex != known[operator]:
        raise ConfigError(f"{key_file}: expected the key of {operator}, found another's")
    return Statement.sign(kind, facts, person=operator, key=key, now=now)
