"""A trained model as it is handed on: safetensors, a signed manifest, a model card. No pickle."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from fedward_common.arrays import Tensors, tensors_from_bytes, tensors_to_bytes
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import SignatureRefused
from fedward_common.study.spec import StudySpec
from fedward_common.trust.private_files import write_atomically
from fedward_common.trust.signing import SigningKey, verify

FORMAT: Final = "fedward-model/1"
DOMAIN: Final = b"fedward/model/v1|"
MODEL: Final = "model.safetensors"
MANIFEST: Final = "manifest.json"
CARD: Final = "MODEL_CARD.md"
PACKAGES: Final = ("fedward-common", "fedward-server", "flwr", "torch", "opacus", "dp-accounting")


def write_package(
    folder: Path,
    *,
    study: StudySpec,
    model: Tensors,
    card: str,
    epsilon: Mapping[str, float],
    key: SigningKey,
) -> dict[str, Any]:
    """The manifest of the package written to `folder`: model, manifest signed by `key`, card."""
    content = tensors_to_bytes(model)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "study": {"id": study.id, "title": study.title, "digest": study.digest},
        "model": study.model.model_dump(mode="json"),
        "model_sha256": sha256_hex(content),
        "card_sha256": sha256_hex(card.encode()),
        "tensors": {name: list(tensor.shape) for name, tensor in sorted(model.items())},
        "privacy": {
            "unit": "one patient at one site",
            "epsilon_admission": dict(epsilon),
            "dp": study.dp.model_dump(mode="json"),
        },
        "software": {name: version(name) for name in PACKAGES},
        "public_key": key.public_hex,
    }
    signed = DOMAIN + canonical_json(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / MODEL, content)
    write_atomically(folder / CARD, card.encode())
    # The manifest comes last: a package without one is not a package.
    write_atomically(
        folder / MANIFEST,
        canonical_json({"manifest": manifest, "signature": key.sign(signed).hex()}),
    )
    return manifest


def verify_package(folder: Path, *, public_key: str | None = None) -> dict[str, Any]:
    """The manifest, after proving that it is signed and that the files are the ones it names.

    1. the manifest parses; 2. its signature is that of the key it names, and of `public_key` where
    one is given; 3. model and card have the signed digests; 4. the tensors have the signed shapes.
    Without `public_key` the signer is not authenticated: compare the key with the study's lead.

    Raises:
        SignatureRefused: one of these does not hold.
    """
    try:
        document = json.loads((folder / MANIFEST).read_bytes())
        manifest: dict[str, Any] = document["manifest"]
        signature, key = bytes.fromhex(document["signature"]), str(manifest["public_key"])
        content, card = (folder / MODEL).read_bytes(), (folder / CARD).read_bytes()
        shapes = {name: tuple(shape) for name, shape in manifest["tensors"].items()}
        digests = (manifest["model_sha256"], manifest["card_sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SignatureRefused(
            f"model package {folder}: expected {MODEL}, {CARD} and a signed {MANIFEST}, "
            "found otherwise"
        ) from error
    verify(key, signature, DOMAIN + canonical_json(manifest))
    if public_key is not None and key != public_key:
        raise SignatureRefused(
            f"model package {folder}: expected the signature of {public_key[:16]}..., "
            f"found that of {key[:16]}..."
        )
    if digests != (sha256_hex(content), sha256_hex(card)):
        raise SignatureRefused(
            f"model package {folder}: expected the files that were signed, found others"
        )
    tensors_from_bytes(content, shapes=shapes)
    return manifest
