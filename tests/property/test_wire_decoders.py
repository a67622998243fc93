"""For any bytes the decoders of wire and study end in a clean refusal: no traceback, no hang."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.arrays import tensors_from_bytes
from fedward_common.errors import ConfigError, FedwardError, ProtocolError, SignatureRefused
from fedward_common.study.files import parse_study
from fedward_common.study.signed import SignedStudy
from fedward_common.trust.signing import SigningKey, key_sha256
from fedward_common.wire import Instruction, Reply
from tests.support.studies import make_spec

KEY = SigningKey.generate()
SIGNED = SignedStudy.sign(make_spec(lead_key_sha256=key_sha256(KEY.public_hex)), KEY).canonical
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_refused_as_a_message_or_a_study(data: bytes) -> None:
    for decode in (Instruction.parse, Reply.parse):
        with pytest.raises(ProtocolError):
            decode(data)
    with pytest.raises((ProtocolError, SignatureRefused)):
        SignedStudy.parse(data).verify()
    with pytest.raises(ProtocolError):
        tensors_from_bytes(data)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_one_changed_byte_of_a_signed_study_is_refused(place: int, change: int) -> None:
    spoiled = bytearray(SIGNED)
    spoiled[place] ^= change

    with pytest.raises((ProtocolError, SignatureRefused)):
        SignedStudy.parse(bytes(spoiled)).verify()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300) | VALUES.map(lambda value: f"id = {json.dumps(value)}"))
def test_any_text_is_refused_as_a_study_file(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_study(text, source="study.toml", keys={}, lead_key_sha256="0" * 64)


def test_deep_nesting_is_refused_and_does_not_exhaust_the_stack() -> None:
    deep = b"[" * 100_000
    for decode in (Instruction.parse, Reply.parse, SignedStudy.parse, tensors_from_bytes):
        with pytest.raises(FedwardError):
            decode(deep)
