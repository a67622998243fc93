"""A trained model as it is handed on: safetensors, a model card, the signed study, a manifest.

The manifest names everything by its digest and is signed by the study's lead; it says from which
rounds and sites the model came. Nothing in a package can run: no pickle, no code.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from fedward_common.arrays import MAX_TENSOR_BYTES, tensors_from_bytes
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import FedwardError, SignatureRefused
from fedward_common.study.signed import MAX_STUDY_BYTES, SignedStudy
from fedward_common.trust.signing import SigningKey, verify

FORMAT: Final = "fedward-model/1"
DOMAIN: Final = b"fedward/model/v1|"
MODEL: Final = "model.safetensors"
MANIFEST: Final = "manifest.json"
CARD: Final = "MODEL_CARD.md"
STUDY: Final = "study.json"

MAX_BYTES: Final[Mapping[str, int]] = {
    MODEL: MAX_TENSOR_BYTES,
    CARD: 1 << 20,
    STUDY: MAX_STUDY_BYTES,
    MANIFEST: 16 << 20,
}
"""The files that a package may have, in the order in which they are handed on, and their limits.
The manifest comes last: a package without one is not a package."""
DIGESTS: Final[Mapping[str, str]] = {
    MODEL: "model_sha256",
    CARD: "card_sha256",
    STUDY: "study_sha256",
}
"""File -> where the manifest names its digest. A sandbox's package has no study.json."""


def signed_manifest(manifest: Mapping[str, Any], key: SigningKey) -> bytes:
    """The bytes of manifest.json: `manifest` under the signature of `key`."""
    signature = key.sign(DOMAIN + canonical_json(dict(manifest))).hex()
    return canonical_json({"manifest": dict(manifest), "signature": signature})


def file_digests(manifest: Mapping[str, Any]) -> dict[str, str]:
    """File -> SHA-256, for every file that the manifest names."""
    return {name: str(manifest[key]) for name, key in DIGESTS.items() if key in manifest}


def parse_manifest(data: bytes, *, source: str, public_key: str | None = None) -> dict[str, Any]:
    """The manifest in the bytes of manifest.json, after proving that it is signed.

    1. it parses; 2. its signature is that of the key it names, and of `public_key` where one is
    given. Without `public_key` the signer is not authenticated. The files are not looked at.

    Raises:
        SignatureRefused: one of these does not hold.
    """
    # 1.
    try:
        document = json.loads(data)
        manifest: dict[str, Any] = document["manifest"]
        signature, key = bytes.fromhex(document["signature"]), str(manifest["public_key"])
        signed = DOMAIN + canonical_json(manifest)
        known = manifest["format"] == FORMAT and set(file_digests(manifest)) >= {MODEL, CARD}
        study = (manifest["study"]["id"], manifest["study"]["digest"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FedwardError) as error:
        raise _otherwise(source) from error
    if not known or not all(isinstance(part, str) for part in study):
        raise _otherwise(source)
    # 2.
    verify(key, signature, signed)
    if public_key is not None and key != public_key:
        raise SignatureRefused(
            f"model package {source}: expected the signature of {public_key[:16]}..., "
            f"found that of {key[:16]}..."
        )
    return manifest


def check_files(manifest: Mapping[str, Any], files: Mapping[str, bytes], *, source: str) -> None:
    """Returns when the files are the ones that a parsed manifest names.

    1. every named file is there with its signed digest, and no other; 2. the model is safetensors
    with finite numbers and the signed names and shapes; 3. a study.json is the study that the
    manifest names, signed by the lead whose key signed the manifest.

    Raises:
        SignatureRefused: 1 or 3 does not hold; ProtocolError: 2 does not.
    """
    # 1.
    digests = file_digests(manifest)
    if {name: sha256_hex(content) for name, content in files.items()} != digests:
        raise SignatureRefused(
            f"model package {source}: expected the files that were signed, found others"
        )
    # 2.
    try:
        shapes = {name: tuple(shape) for name, shape in manifest["tensors"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise _otherwise(source) from error
    tensors_from_bytes(files[MODEL], shapes=shapes)
    # 3.
    if STUDY in files:
        signed = SignedStudy.parse(files[STUDY])
        signed.verify()
        if signed.digest != manifest["study"]["digest"]:
            raise SignatureRefused(
                f"model package {source}: expected the study that the manifest names, found another"
            )
        if signed.lead_public_key != manifest["public_key"]:
            raise SignatureRefused(
                f"model package {source}: expected the signature of the study's lead, found that "
                "of another key"
            )


def _otherwise(source: str) -> SignatureRefused:
    return SignatureRefused(
        f"model package {source}: expected {MODEL}, {CARD} and a signed {MANIFEST}, found otherwise"
    )
