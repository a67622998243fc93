"""The study lead's files: study.toml from a template, what is wrong with it, keys, a signature."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field, ValidationError

from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError
from fedward_common.ids import DIGEST, parse_site_id
from fedward_common.study.files import SiteKeys, explain, parse_study
from fedward_common.study.registry import Strict
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.trust.private_files import write_atomically, write_private
from fedward_common.trust.signing import SigningKey, key_sha256
from fedward_common.trust.words import words
from fedward_server.adapters.registry import open_registry
from fedward_server.ports import SiteRecord
from fedward_server.settings import CoordinatorSettings

TEMPLATES: Final = Path(__file__).parent / "study_templates"
KEYS_FORMAT: Final = "fedward-keys/1"
MAX_KEYS_BYTES: Final = 1 << 20


def template_kinds() -> tuple[str, ...]:
    """The task kinds that `init_study` has a template for."""
    return tuple(sorted(path.stem for path in TEMPLATES.glob("*.toml")))


def init_study(path: Path, *, kind: str, study_id: str) -> None:
    """Writes a commented study.toml for a task kind to `path`.

    Raises:
        ConfigError: no template of that kind, no study id, or the file is there already.
    """
    if kind not in template_kinds():
        raise ConfigError(
            f"--task {kind}: expected one of {', '.join(template_kinds())}, found another"
        )
    parse_site_id(study_id)  # a study's name has the form of a site's
    text = (TEMPLATES / f"{kind}.toml").read_text(encoding="utf-8").replace("STUDY-ID", study_id)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{path}: expected no file, found one. Name another") from error
    except OSError as error:
        raise ConfigError(f"{path}: expected to write it, found {error.strerror}") from error


class _Keys(Strict):
    key_sha256: str = Field(pattern=DIGEST)
    node_key_sha256: str = Field(pattern=DIGEST)


class KeysFile(Strict):
    """The digests of the sites' keys as the parties confirmed them, as a file."""

    format: str = Field(default=KEYS_FORMAT, pattern=f"^{KEYS_FORMAT}$")
    federation: str
    sites: dict[str, _Keys]

    @classmethod
    def of(cls, records: Iterable[SiteRecord], *, federation: str) -> Self:
        """The keys of these sites, as the registry holds them."""
        return cls(
            federation=federation,
            sites={
                record.site_id: _Keys(
                    key_sha256=record.key_sha256, node_key_sha256=record.node_key_sha256
                )
                for record in records
            },
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """The keys in `path`. Raises ConfigError when it is no file of keys."""
        try:
            data = path.read_bytes()[: MAX_KEYS_BYTES + 1]
            document = json.loads(data)
            return cls.model_validate(document)
        except OSError as error:
            raise ConfigError(f"{path}: expected a file of keys, found {error.strerror}") from error
        except ValidationError as error:
            raise explain(error, source=str(path), document=document) from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path}: expected the JSON of a file of keys, found other"
            ) from error

    @property
    def site_keys(self) -> dict[str, SiteKeys]:
        """Site -> the digests that a study names."""
        return {
            site: SiteKeys(key_sha256=keys.key_sha256, node_key_sha256=keys.node_key_sha256)
            for site, keys in self.sites.items()
        }


def keys_document(records: Iterable[SiteRecord], *, federation: str) -> dict[str, Any]:
    """What `fedward-server site list --keys` prints: the JSON that `--keys FILE` reads."""
    return KeysFile.of(records, federation=federation).model_dump(mode="json")


def registry_keys(settings: CoordinatorSettings) -> KeysFile:
    """The keys of the active sites in the coordinator's registry."""
    registry = open_registry(settings.database)
    try:
        return KeysFile.of(registry.active_sites(), federation=settings.federation)
    finally:
        registry.close()


def key_words(site: SiteKeys) -> str:
    """Both keys of a site as eight words, for the telephone (rules 12)."""
    return words(sha256_hex(f"{site.key_sha256}|{site.node_key_sha256}".encode()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Problems:
    """What is wrong with a study file, one line each."""

    lines: tuple[str, ...]


def check_study(
    path: Path, *, keys: Mapping[str, SiteKeys] | None, lead_key_sha256: str | None
) -> StudySpec | Problems:
    """The study in `path`, or everything that is wrong with it.

    Without `keys` or a lead, stand-ins take their places: the file is checked all the same, and
    only the digest is not the one that will be signed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return Problems(lines=(f"{path}: expected a study file (UTF-8 TOML), found none",))
    try:
        return parse_study(
            text,
            source=str(path),
            keys=stand_in_keys(text) if keys is None else keys,
            lead_key_sha256=lead_key_sha256 or sha256_hex(b"stand-in/lead"),
        )
    except ConfigError as error:
        return Problems(lines=tuple(str(error).splitlines()))


def stand_in_keys(text: str) -> dict[str, SiteKeys]:
    """Made-up digests for the sites that a study file names."""
    try:
        sites = tomllib.loads(text).get("sites")
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}
    if not isinstance(sites, list):
        return {}
    names = [site.get("id") for site in sites if isinstance(site, dict)]
    return {
        name: SiteKeys(
            key_sha256=sha256_hex(f"stand-in/{name}/key".encode()),
            node_key_sha256=sha256_hex(f"stand-in/{name}/node".encode()),
        )
        for name in names
        if isinstance(name, str)
    }


def checked_study(path: Path, *, keys: Mapping[str, SiteKeys], key: SigningKey) -> StudySpec:
    """The study in `path` with these keys and the lead whose key this is.

    Raises:
        ConfigError: one line per problem of the file.
    """
    checked = check_study(path, keys=keys, lead_key_sha256=key_sha256(key.public_hex))
    if isinstance(checked, Problems):
        raise ConfigError("\n".join(checked.lines))
    return checked


def write_signed(path: Path, signed: SignedStudy) -> None:
    """Writes the file that hospitals get to read and approve."""
    try:
        write_atomically(path, signed.canonical)
    except OSError as error:
        raise ConfigError(f"{path}: expected to write it, found {error.strerror}") from error


def new_lead(path: Path) -> str:
    """The public key of a new lead whose private key is in `path` (0600) when this returns.

    Raises:
        ConfigError: the file is there already, or cannot be written.
    """
    if path.exists():
        raise ConfigError(f"{path}: expected no file, found one. A key is never written over")
    key = SigningKey.generate()
    try:
        write_private(path, key.to_pem())
    except OSError as error:
        raise ConfigError(f"{path}: expected to write it, found {error.strerror}") from error
    return key.public_hex


def read_lead_key(path: Path) -> SigningKey:
    """The lead's private key.

    Raises:
        ConfigError: no such file, open to others, or not an Ed25519 key.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(
                f"{path}: expected a private key of mode 0600, found it open to others. "
                f"Run: chmod 600 {path}"
            )
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: expected the lead's key, found {error.strerror}") from error
    return SigningKey.from_pem(pem)
