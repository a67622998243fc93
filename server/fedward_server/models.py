"""Finished models as sites get them: signed by the study's lead, then listed and read by piece.

The coordinator may be taken over, so it does not sign: a model is handed on once the key that the
sites confirmed with the study has signed it (rules 12, `sign_model`). Until then no site sees it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from fedward_common.canonical import sha256_hex
from fedward_common.errors import FedwardError, SignatureRefused
from fedward_common.model_package import MANIFEST, file_digests, parse_manifest
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_server.adapters.run_files import RUN_NAME, read_study, run_path
from fedward_server.ports import SiteRecord

CHUNK_BYTES: Final = 1 << 20


def package_path(state: Path, run: str) -> Path:
    """Where the model package of a run lies. Raises ConfigError when `run` is no run's name."""
    return state / "models" / run_path(state, run).name


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A signed model package as it is handed on: file -> size in bytes and SHA-256."""

    run: str
    study: StudySpec
    folder: Path
    model_sha256: str
    sizes: Mapping[str, int]
    sha256: Mapping[str, str]


class ModelShelf:
    """The packages of one coordinator: what a site may list and read.

    Guarantees: a site gets only packages whose study names it with the very keys that the registry
    holds for it, whose manifest the study's lead signed, and of these only files that the manifest
    names.
    """

    def __init__(self, state: Path) -> None:
        self._state = state

    def packages(self, record: SiteRecord) -> list[Package]:
        """The packages for a site, by run."""
        found = (self._package(path) for path in sorted((self._state / "models").glob("*")))
        return [one for one in found if one is not None and _is_for(one, record)]

    def find(self, record: SiteRecord, run: str) -> Package | None:
        """One package for a site; None where there is none, or it is not for this site."""
        if not RUN_NAME.fullmatch(run):
            return None
        package = self._package(package_path(self._state, run))
        return package if package is not None and _is_for(package, record) else None

    def read(self, package: Package, file: str, *, offset: int) -> bytes:
        """At most 1 MiB of a file of `package`, from `offset`.

        Raises:
            OSError: it cannot be read.
        """
        with (package.folder / file).open("rb") as content:
            content.seek(offset)
            return content.read(CHUNK_BYTES)

    def _package(self, folder: Path) -> Package | None:
        """The package in a folder; None where there is none that verifies."""
        try:
            changed = (folder / MANIFEST).stat().st_mtime_ns
            return _read_package(self._state, folder, changed)
        except (OSError, FedwardError):
            # Not written to the end, or not the lead's: nobody is told of it. `doctor` says so.
            return None


@lru_cache(maxsize=256)
def _read_package(state: Path, folder: Path, _changed_ns: int) -> Package:
    """The package in `folder`: verified manifest, verified study; the files' digests as signed.

    That each file has its digest is proven when the package is written and by whoever fetches it.
    """
    data = (folder / MANIFEST).read_bytes()
    manifest = parse_manifest(data, source=folder.name)
    signed = SignedStudy.parse(read_study(state, manifest["study"]["digest"]))
    study = signed.verify()
    if manifest["public_key"] != signed.lead_public_key:
        raise SignatureRefused(f"model package {folder.name}: expected the lead's signature")
    digests = {**file_digests(manifest), MANIFEST: sha256_hex(data)}
    return Package(
        run=folder.name,
        study=study,
        folder=folder,
        model_sha256=manifest["model_sha256"],
        sizes={name: (folder / name).stat().st_size for name in digests},
        sha256=digests,
    )


def _is_for(package: Package, record: SiteRecord) -> bool:
    """Whether the study names this site with the keys of its record (rules 12, 15)."""
    site = package.study.site(record.site_id)
    return site is not None and (site.key_sha256, site.node_key_sha256) == (
        record.key_sha256,
        record.node_key_sha256,
    )
