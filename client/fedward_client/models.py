"""The models that came of this site's studies: listed, fetched piece by piece, verified, kept.

A model is taken only if the lead of a study that this hospital approved has signed it; the
coordinator's word is not enough. Until everything is proven nothing lies under the final name.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from fedward_client.approvals import read_statement
from fedward_client.gateway.offers import ModelOffer
from fedward_client.ports import Passing
from fedward_client.settings import SiteSettings
from fedward_common.arrays import Tensors, tensors_from_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import (
    ChannelError,
    ConfigError,
    FedwardError,
    ProtocolError,
    SignatureRefused,
)
from fedward_common.model_package import (
    MANIFEST,
    MAX_BYTES,
    MODEL,
    STUDY,
    check_files,
    file_digests,
    parse_manifest,
)
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec

KIND: Final = "model"
ROUTE: Final = "fetch-model"
MAX_PIECE_BYTES: Final = 1 << 20

Progress = Callable[[int, int], None]
"""(bytes that are here, bytes of the whole package)."""


class ModelChannel(Protocol):
    """The part of the encrypted channel that models come by."""

    async def models(self) -> tuple[ModelOffer, ...]:
        """What the coordinator offers this site. Raises ChannelError."""
        ...

    async def model_piece(self, run: str, file: str, *, offset: int) -> tuple[bytes, int]:
        """The bytes from `offset` and the file's size. Raises ChannelError."""
        ...


class SiteJournal(Protocol):
    """The site's journal, which the guard keeps."""

    def journal(self, passing: Passing) -> None:
        """Writes down one object; on disk when this returns. Raises FedwardError."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """A verified package: its folder, its manifest, and whether it came now or was there."""

    folder: Path
    manifest: Mapping[str, Any]
    new: bool


def choose(offers: Sequence[ModelOffer], which: str) -> ModelOffer:
    """The offer of a run, or of the one run of a study id.

    Raises:
        ConfigError: none, or several, of that name.
    """
    found = [offer for offer in offers if which in (offer.run, offer.study_id)]
    if len(found) != 1:
        names = ", ".join(offer.run for offer in found or offers) or "none"
        raise ConfigError(
            f"model {which}: expected the name of one run, found {len(found)}; there is: {names}"
        )
    return found[0]


def approved_studies(settings: SiteSettings) -> frozenset[str]:
    """The digests of the studies that this site's approvers ever approved.

    A revocation ends a study's rounds, not the truth of its lead's key: it is not looked at here.

    Raises:
        ConfigError: the statements cannot be read.
    """
    people = {(approver.name, approver.public_key) for approver in settings.approvers}
    found = set()
    try:
        # Not glob(), which says nothing of a folder that may not be read.
        files = [path for path in settings.approvals_folder.iterdir() if path.suffix == ".json"]
        contents = [path.read_bytes() for path in files]
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise ConfigError(
            f"{settings.approvals_folder}: expected to read what was approved, found "
            f"{error.strerror}. Run this as root, or as the user that owns the guard's files"
        ) from error
    for content in contents:
        try:
            said = read_statement(content)
        except FedwardError:
            continue  # the guard does not take it either
        by = (said.person, said.public_key)
        if said.kind == "study-approval" and said.facts["site"] == settings.site and by in people:
            found.add(str(said.facts["study"]))
    return frozenset(found)


def verify_model(
    folder: Path, *, approved: frozenset[str] | None, public_key: str | None = None
) -> dict[str, Any]:
    """The manifest of the package in `folder`, after proving it whole.

    1. manifest.json is signed, by `public_key` where one is given; 2. each file is the one it
    names, the model safetensors with the signed shapes; 3. with `approved`, study.json is there, is
    one of these studies, and its lead's key is the manifest's.

    Raises:
        SignatureRefused, ProtocolError: one of these does not hold.
    """
    source = str(folder)
    try:
        manifest = parse_manifest(
            (folder / MANIFEST).read_bytes(), source=source, public_key=public_key
        )
        files = {name: (folder / name).read_bytes() for name in file_digests(manifest)}
    except OSError as error:
        raise SignatureRefused(
            f"model package {source}: expected its files, found {error.strerror}"
        ) from error
    check_files(manifest, files, source=source)
    if approved is not None:
        # check_files has proven that this is the manifest's study, signed by the manifest's key.
        digest = SignedStudy.parse(files[STUDY]).digest if STUDY in files else None
        if digest not in approved:
            raise SignatureRefused(
                f"model package {source}: expected a model of a study that this hospital approved, "
                "found another"
            )
    return manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedModel:
    """A package that was proven whole: its study, its weights (shapes as signed), its digest."""

    signed: SignedStudy
    study: StudySpec
    weights: Tensors
    sha256: str


def open_model(
    folder: Path,
    *,
    approved: frozenset[str] | None,
    public_key: str | None = None,
    study_file: Path | None = None,
) -> OpenedModel:
    """What is in the package in `folder`, after `verify_model`; nothing is read before that.

    `study_file` is the signed study where the package brings none.

    Raises:
        SignatureRefused, ProtocolError: the package or the study is not what was signed.
        ConfigError: there is no study.
    """
    manifest = verify_model(folder, approved=approved, public_key=public_key)
    path = folder / STUDY if (folder / STUDY).is_file() else study_file
    if path is None:
        raise ConfigError(
            f"model package {folder}: expected study.json in it, found none; name the signed "
            "study with --study"
        )
    try:
        signed = SignedStudy.parse(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: expected a signed study, found {error.strerror}") from error
    study = signed.verify()
    if signed.digest != manifest["study"]["digest"]:
        raise SignatureRefused(f"{path}: expected the study of the model, found another")
    return OpenedModel(
        signed=signed,
        study=study,
        weights=tensors_from_bytes((folder / MODEL).read_bytes()),
        sha256=str(manifest["model_sha256"]),
    )


@dataclass(frozen=True, kw_only=True)
class ModelFetcher:
    """Fetches model packages into a folder; `journal` is where each file is written down."""

    channel: ModelChannel
    journal: SiteJournal
    approved: frozenset[str]
    out: Path
    progress: Progress = lambda _done, _size: None

    async def fetch(self, offer: ModelOffer) -> Fetched:
        """The package of `offer`, verified; what an earlier call left half-done is gone on with.

        1. Names and sizes are those that a package may have, and there is room for them; 2. every
        file comes piece by piece into a folder that no program takes for a package; 3. the package
        is proven as a whole (`verify_model`), and is of the study and run that were offered; 4.
        each file is in the journal; 5. the folder gets its name.

        Raises:
            ConfigError: no room, or something else lies there. ChannelError: the transfer broke off
                (the next call goes on). SignatureRefused, ProtocolError: step 3; what came is gone.
            PolicyRefused, StartError: the guard did not write it down.
        """
        target = self.out / offer.run
        if target.exists():
            manifest = verify_model(target, approved=self.approved)
            _require_offered(offer, manifest)
            return Fetched(folder=target, manifest=manifest, new=False)
        # 1.
        self._require_room(offer)
        # 2.
        part = self.out / f".{offer.run}-{offer.model_sha256[:16]}.part"
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
        done = 0
        for name in (name for name in MAX_BYTES if name in offer.files):
            await self._file(offer, name, part / name, done=done)
            done += offer.files[name]
        # 3.
        try:
            manifest = verify_model(part, approved=self.approved)
            _require_offered(offer, manifest)
        except FedwardError:
            shutil.rmtree(part)
            raise
        # 4.
        for name in offer.files:
            content = (part / name).read_bytes()
            self.journal.journal(
                Passing(
                    direction="in",
                    route=ROUTE,
                    kind=KIND,
                    sha256=sha256_hex(content),
                    bytes=len(content),
                )
            )
        # 5.
        part.rename(target)
        return Fetched(folder=target, manifest=manifest, new=True)

    async def _file(self, offer: ModelOffer, name: str, path: Path, *, done: int) -> None:
        """Brings `path` to the offered size, from wherever it is."""
        size, whole = offer.files[name], sum(offer.files.values())
        with path.open("ab") as file:
            if file.tell() > size:
                file.truncate(0)
            while (offset := file.tell()) < size:
                piece, said = await self.channel.model_piece(offer.run, name, offset=offset)
                if said != size or not 0 < len(piece) <= min(MAX_PIECE_BYTES, size - offset):
                    raise ChannelError(
                        f"model {offer.run}: expected a piece of the offered file, found another"
                    )
                file.write(piece)
                self.progress(done + offset + len(piece), whole)
            file.flush()
            os.fsync(file.fileno())

    def _require_room(self, offer: ModelOffer) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        needed, free = sum(offer.files.values()), shutil.disk_usage(self.out).free
        if needed > free:
            raise ConfigError(
                f"{self.out}: expected room for {needed} bytes, found {free} free. "
                "Free space, or name another folder with --out"
            )


def _require_offered(offer: ModelOffer, manifest: Mapping[str, Any]) -> None:
    """Returns when the signed manifest says of itself what the coordinator's offer said.

    A coordinator that was taken over can sign nothing, but it could hand out the model of another
    approved study, or of an earlier run, under the name that was asked for.

    Raises:
        ProtocolError: another model, study, run or set of files.
    """
    lineage = manifest.get("lineage")
    said = (
        manifest["model_sha256"],
        manifest["study"]["digest"],
        manifest["study"]["id"],
        lineage.get("run") if isinstance(lineage, Mapping) else None,
        {*file_digests(manifest), MANIFEST},
    )
    if said != (offer.model_sha256, offer.study, offer.study_id, offer.run, set(offer.files)):
        raise ProtocolError(f"model {offer.run}: expected the offered one, found another")


def offers_json(offers: Sequence[ModelOffer], *, approved: frozenset[str]) -> dict[str, Any]:
    """The offers as a JSON value, each with whether this hospital approved its study."""
    return {
        "models": [
            {
                "run": offer.run,
                "study": offer.study,
                "study_id": offer.study_id,
                "model_sha256": offer.model_sha256,
                "bytes": sum(offer.files.values()),
                "approved": offer.study in approved,
            }
            for offer in offers
        ]
    }


def offers_text(offers: Sequence[ModelOffer], *, approved: frozenset[str]) -> str:
    """The offers for people, one line each."""
    if not offers:
        return "no model yet: a study's lead signs it when the study has finished"
    return "\n".join(
        f"{offer.run}  study {offer.study[:12]}  {sum(offer.files.values()):,} bytes  "
        + ("approved here" if offer.study in approved else "NOT approved here: not fetched")
        for offer in offers
    )
