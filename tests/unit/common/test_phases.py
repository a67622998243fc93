"""What travels in a phase has one form, a size, and a name by its content."""

import asyncio
import contextlib
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.channel.phase_pb2 import PhaseBlob, PhaseDown, PhaseStep, PhaseUp
from fedward_common.channel.phases import (
    MAX_FRAME_BYTES,
    envelope_bytes,
    envelope_sha256,
    framed,
    from_step,
    parse,
    read_message,
    receive_message,
    to_step,
)
from fedward_common.channel.routes import MAX_BODY_BYTES
from fedward_common.errors import ProtocolError
from fedward_common.wire import Envelope

names = st.from_regex(r"[a-z][a-z0-9_.-]{0,10}", fullmatch=True)
envelopes = st.builds(
    Envelope,
    header=st.binary(max_size=50),
    blobs=st.dictionaries(names, st.binary(max_size=50), max_size=5),
)


@given(envelope=envelopes, number=st.integers(1, 2**63))
def test_an_envelope_comes_back_as_it_went(envelope: Envelope, number: int) -> None:
    step = PhaseStep.FromString(to_step(number, envelope).SerializeToString())

    assert from_step(step) == envelope
    assert step.number == number


@given(envelope=envelopes)
def test_the_order_of_blobs_says_nothing(envelope: Envelope) -> None:
    turned = Envelope(header=envelope.header, blobs=dict(reversed(envelope.blobs.items())))

    assert to_step(1, turned).SerializeToString() == to_step(1, envelope).SerializeToString()
    assert envelope_sha256(turned) == envelope_sha256(envelope)


@given(one=envelopes, other=envelopes)
def test_different_envelopes_have_different_names(one: Envelope, other: Envelope) -> None:
    assert (envelope_sha256(one) == envelope_sha256(other)) == (one == other)


def test_a_step_is_at_most_8_mib() -> None:
    fits = Envelope(header=b"h", blobs={"model": bytes(MAX_BODY_BYTES - 1)})

    assert envelope_bytes(from_step(to_step(1, fits))) == MAX_BODY_BYTES
    assert len(framed(PhaseUp(answer=to_step(1, fits)))) <= MAX_FRAME_BYTES + 4
    with pytest.raises(ProtocolError, match="at most 8388608 bytes"):
        to_step(1, Envelope(header=b"hh", blobs=fits.blobs))


@pytest.mark.parametrize(
    "step",
    [
        PhaseStep(number=0, header=b"h"),
        PhaseStep(number=1, blobs=[PhaseBlob(name="a"), PhaseBlob(name="a")]),
        PhaseStep(number=1, blobs=[PhaseBlob(name=f"b{i}") for i in range(17)]),
        PhaseStep(number=1, blobs=[PhaseBlob(name="A secret in a name")]),
    ],
    ids=["no number", "a blob twice", "too many blobs", "a name of another form"],
)
def test_a_step_of_another_form_is_refused(step: PhaseStep) -> None:
    with pytest.raises(ProtocolError, match="step: expected"):
        from_step(step)


def test_a_frame_that_claims_too_much_is_refused_before_it_is_read() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.sendall((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))

        with pytest.raises(ProtocolError, match="in a frame"):
            receive_message(far, PhaseDown)


def test_an_end_between_or_within_frames_is_none() -> None:
    for sent in (b"", b"\0\0", framed(PhaseDown(ended=True))[:-1]):
        near, far = socket.socketpair()
        with far:
            near.sendall(sent)
            near.close()

            assert receive_message(far, PhaseDown) is None


@settings(max_examples=50)
@given(data=st.binary(max_size=64))
def test_bytes_that_are_no_message_are_refused_or_read(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(parse(PhaseUp, data), PhaseUp)


def test_frames_read_the_same_with_and_without_a_loop() -> None:
    messages = [PhaseDown(ended=True), PhaseDown(step=to_step(3, Envelope(header=b"h")))]

    async def read() -> list[PhaseDown | None]:
        reader = asyncio.StreamReader()
        reader.feed_data(b"".join(map(framed, messages)))
        reader.feed_eof()
        return [await read_message(reader, PhaseDown) for _ in range(3)]

    assert asyncio.run(read()) == [*messages, None]
