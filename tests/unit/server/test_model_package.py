"""A model package verifies as a whole or not at all; nothing in it can run."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedward_common.canonical import canonical_json
from fedward_common.errors import SignatureRefused
from fedward_common.trust.signing import SigningKey
from fedward_server.adapters.model_package import (
    CARD,
    MANIFEST,
    MODEL,
    verify_package,
    write_package,
)
from tests.support.multimodal import KIN, multimodal_study
from tests.support.studies import make_spec

KEY = SigningKey.generate()
TENSORS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    write_package(
        folder,
        study=make_spec(),
        model=TENSORS,
        card="# A model\n",
        epsilon={"north": 1.5},
        key=KEY,
    )
    return folder


def test_a_package_verifies_and_says_what_it_is(package: Path) -> None:
    manifest = verify_package(package, public_key=KEY.public_hex)

    assert manifest["study"]["digest"] == make_spec().digest
    assert manifest["tensors"] == {"w": [2, 3]}
    assert manifest["privacy"]["epsilon_admission"] == {"north": 1.5}


def test_a_package_says_the_study_s_privacy_unit(package: Path, tmp_path: Path) -> None:
    study = multimodal_study(**KIN)
    write_package(
        tmp_path / "kin", study=study, model=TENSORS, card="", epsilon={"north": 1.5}, key=KEY
    )

    units = [
        verify_package(folder, public_key=KEY.public_hex)["privacy"]["unit"]
        for folder in (package, tmp_path / "kin")
    ]
    assert units == ["one patient at one site", "one family at one site"]


@pytest.mark.parametrize("name", [MODEL, CARD, MANIFEST])
def test_a_changed_byte_in_any_file_is_refused(package: Path, name: str) -> None:
    content = bytearray((package / name).read_bytes())
    content[len(content) // 2] ^= 1
    (package / name).write_bytes(content)

    with pytest.raises(SignatureRefused):
        verify_package(package)


@pytest.mark.parametrize("name", [MODEL, CARD, MANIFEST])
def test_a_missing_file_is_refused(package: Path, name: str) -> None:
    (package / name).unlink()

    with pytest.raises(SignatureRefused, match="found otherwise"):
        verify_package(package)


def test_the_signature_of_another_key_is_refused_when_a_key_is_asked_for(package: Path) -> None:
    with pytest.raises(SignatureRefused, match="expected the signature of"):
        verify_package(package, public_key=SigningKey.generate().public_hex)


@pytest.mark.parametrize("document", [[], {}, {"manifest": {}, "signature": "zz"}, {"manifest": 1}])
def test_a_manifest_of_another_form_is_refused(package: Path, document: object) -> None:
    (package / MANIFEST).write_bytes(canonical_json(document))

    with pytest.raises(SignatureRefused):
        verify_package(package)


def test_a_manifest_signed_by_another_key_than_it_names_is_refused(package: Path) -> None:
    document = json.loads((package / MANIFEST).read_bytes())
    document["manifest"]["public_key"] = SigningKey.generate().public_hex
    (package / MANIFEST).write_bytes(canonical_json(document))

    with pytest.raises(SignatureRefused):
        verify_package(package)
