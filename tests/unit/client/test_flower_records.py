"""Flower names objects by content: equal envelopes have equal ids, other bytes have others."""

from dataclasses import replace

import pytest

from fedward_client.adapters.flower_records import from_records, object_ids, to_records
from fedward_common.wire import Envelope
from fedward_server.adapters import flower_records as server

SEALED = Envelope(header=b'{"kind":"train"}', blobs={"payload": b"\0" * 1000})


def test_equal_envelopes_have_equal_ids() -> None:
    assert object_ids(SEALED) == object_ids(replace(SEALED))


@pytest.mark.parametrize(
    "other",
    [
        replace(SEALED, header=b'{"kind":"train" }'),
        replace(SEALED, blobs={"payload": b"\0" * 999 + b"\1"}),
        replace(SEALED, blobs={"payload": b"\0" * 1000, "more": b"x"}),
        replace(SEALED, blobs={"payload2": b"\0" * 1000}),
    ],
    ids=["header", "one byte", "another blob", "another name"],
)
def test_anything_else_has_other_ids(other: Envelope) -> None:
    assert object_ids(other) != object_ids(SEALED)


def test_both_sides_carry_an_envelope_the_same_way() -> None:
    assert from_records(server.to_records(SEALED)) == SEALED
    assert server.from_records(to_records(SEALED)) == SEALED


def test_a_blob_beyond_flowers_chunk_keeps_its_bytes_and_has_more_ids() -> None:
    large = replace(SEALED, blobs={"payload": bytes(11 << 20)})

    assert len(object_ids(large)) > len(object_ids(SEALED)) - 1
    assert from_records(to_records(large)) == large
