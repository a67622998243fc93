"""A signed study proves what `SignedStudy.verify` lists, and nothing passes with less."""

import json
from typing import Any

import pytest

from fedward_common.canonical import canonical_json
from fedward_common.errors import ProtocolError, SignatureRefused
from fedward_common.study.signed import MAX_STUDY_BYTES, SignedStudy
from fedward_common.trust.signing import SigningKey, key_sha256
from tests.support.studies import make_spec


@pytest.fixture(scope="module")
def lead() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="module")
def signed(lead: SigningKey) -> SignedStudy:
    spec = make_spec(lead_key_sha256=key_sha256(lead.public_hex))
    return SignedStudy.sign(spec, lead)


def changed(signed: SignedStudy, **fields: Any) -> bytes:
    """The canonical bytes of `signed` with fields of the outer object replaced."""
    return canonical_json(json.loads(signed.canonical) | fields)


def with_study(signed: SignedStudy, **fields: Any) -> bytes:
    """The canonical bytes of `signed` with fields of the study replaced."""
    return changed(signed, study=json.loads(signed.study) | fields)


def test_a_signed_study_comes_back_as_the_same_study(signed: SignedStudy, lead: SigningKey) -> None:
    spec = make_spec(lead_key_sha256=key_sha256(lead.public_hex))

    parsed = SignedStudy.parse(signed.canonical)

    assert parsed == signed
    assert parsed.verify() == spec
    assert parsed.digest == spec.digest


def test_a_lead_cannot_sign_a_study_that_names_another_lead() -> None:
    with pytest.raises(SignatureRefused, match="expected the signing key of the lead"):
        SignedStudy.sign(make_spec(), SigningKey.generate())


def test_a_change_of_the_study_is_refused(signed: SignedStudy) -> None:
    parsed = SignedStudy.parse(with_study(signed, title="Another title"))

    with pytest.raises(SignatureRefused, match="signature"):
        parsed.verify()


def test_another_key_beside_the_study_is_refused(signed: SignedStudy) -> None:
    thief = SigningKey.generate()
    signature = thief.sign(b"fedward/study/v1|" + signed.study).hex()
    data = changed(signed, lead_public_key=thief.public_hex, signature=signature)

    with pytest.raises(SignatureRefused, match="expected the lead's key"):
        SignedStudy.parse(data).verify()


def test_a_signature_of_the_bare_bytes_is_refused(signed: SignedStudy, lead: SigningKey) -> None:
    data = changed(signed, signature=lead.sign(signed.study).hex())

    with pytest.raises(SignatureRefused, match="signature"):
        SignedStudy.parse(data).verify()


def test_a_study_with_a_field_left_to_its_default_is_refused(
    signed: SignedStudy, lead: SigningKey
) -> None:
    study = json.loads(signed.study)
    del study["uncovered_evaluation"]
    data = changed(
        signed,
        study=study,
        signature=lead.sign(b"fedward/study/v1|" + canonical_json(study)).hex(),
    )

    with pytest.raises(ProtocolError, match="every field written out"):
        SignedStudy.parse(data).verify()


def test_a_study_that_breaks_a_rule_of_the_specification_is_refused(signed: SignedStudy) -> None:
    with pytest.raises(ProtocolError, match="expected a StudySpec"):
        SignedStudy.parse(with_study(signed, quorum=99)).verify()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'{"study": {}}',
        b"[" * 100_000,
        b'{"lead_public_key":"x","signature":"y","study":{}}',
        b" " * (MAX_STUDY_BYTES + 1),
    ],
)
def test_bytes_of_another_form_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="signed study: expected"):
        SignedStudy.parse(data)


@pytest.mark.parametrize(
    "respell",
    [
        lambda text: text + b"\n",
        lambda text: text.replace(b'"rounds":3', b'"rounds":3.0'),
        lambda text: text.replace(b'"rounds":3', b'"rounds":9,"rounds":3'),
        lambda text: text.replace(b"made-up", b"made\\u002dup"),
        lambda text: text.replace(b"made-up", b"\\ud800"),
        lambda text: text.replace(b'"rounds":3', b'"rounds":NaN'),
    ],
)
def test_another_spelling_of_the_same_json_is_refused(signed: SignedStudy, respell: Any) -> None:
    data = respell(signed.canonical)
    assert data != signed.canonical

    with pytest.raises(ProtocolError):
        SignedStudy.parse(data)
