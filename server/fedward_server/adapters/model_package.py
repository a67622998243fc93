"""Model packages on disk: written whole or not at all, verified before anything is read of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from fedward_common.arrays import Tensors, tensors_to_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import SignatureRefused
from fedward_common.model_package import (
    CARD,
    FORMAT,
    MANIFEST,
    MODEL,
    STUDY,
    check_files,
    file_digests,
    parse_manifest,
    signed_manifest,
)
from fedward_common.study.spec import StudySpec
from fedward_common.trust.private_files import write_atomically
from fedward_common.trust.signing import SigningKey

__all__ = ["CARD", "MANIFEST", "MODEL", "STUDY", "Origin", "verify_package", "write_package"]

PACKAGES: Final = ("fedward-common", "fedward-server", "flwr", "torch", "opacus", "dp-accounting")


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a model came from: the signed study, and the run with its rounds, sites and digests.

    A sandbox has no `lineage` to sign: its runs and their logs go with its folder.
    """

    signed_study: bytes
    lineage: Mapping[str, Any] | None = None


def write_package(
    folder: Path,
    *,
    study: StudySpec,
    model: Tensors,
    card: str,
    epsilon: Mapping[str, float],
    key: SigningKey,
    origin: Origin | None = None,
) -> dict[str, Any]:
    """The manifest of the package written to `folder`: model, card, manifest signed by `key`.

    With `origin` the package also holds the signed study, and its manifest the lineage if known.
    """
    files = {MODEL: tensors_to_bytes(model), CARD: card.encode()}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "study": {"id": study.id, "title": study.title, "digest": study.digest},
        "model": study.model.model_dump(mode="json"),
        "model_sha256": sha256_hex(files[MODEL]),
        "card_sha256": sha256_hex(files[CARD]),
        "tensors": {name: list(tensor.shape) for name, tensor in sorted(model.items())},
        "privacy": {
            "unit": f"one {getattr(study.dp, 'unit', 'patient')} at one site",
            "epsilon_admission": dict(epsilon),
            "dp": study.dp.model_dump(mode="json"),
        },
        "software": {name: version(name) for name in PACKAGES},
        "public_key": key.public_hex,
    }
    if origin is not None:
        files[STUDY] = origin.signed_study
        manifest["study_sha256"] = sha256_hex(files[STUDY])
        if origin.lineage is not None:
            manifest["lineage"] = dict(origin.lineage)
    signed = signed_manifest(manifest, key)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(folder / name, content)
    # The manifest comes last: a package without one is not a package.
    write_atomically(folder / MANIFEST, signed)
    return manifest


def verify_package(folder: Path, *, public_key: str | None = None) -> dict[str, Any]:
    """The manifest, after proving that it is signed and that the files are the ones it names.

    1. the manifest parses; 2. its signature is that of the key it names, and of `public_key` where
    one is given; 3. every file has the signed digest; 4. the tensors have the signed shapes; 5. a
    study in it is the one named, by the same lead.
    Without `public_key` the signer is not authenticated: compare the key with the study's lead.

    Raises:
        SignatureRefused, ProtocolError: one of these does not hold.
    """
    source = str(folder)
    try:
        data = (folder / MANIFEST).read_bytes()
        manifest = parse_manifest(data, source=source, public_key=public_key)
        files = {name: (folder / name).read_bytes() for name in file_digests(manifest)}
    except OSError as error:
        raise SignatureRefused(
            f"model package {folder}: expected {MODEL}, {CARD} and a signed {MANIFEST}, "
            "found otherwise"
        ) from error
    check_files(manifest, files, source=source)
    return manifest
