"""Models as mapped files are what the same bytes in memory are, and nothing else is a model."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from fedward_common.arrays import numeric_parts, tensors_from_bytes, tensors_to_bytes
from fedward_common.errors import ProtocolError

NAMES = st.text('abyzäβ./"\\', min_size=1, max_size=6)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(["f4", "f8", "i4", "i8"]))))
def test_the_bytes_are_those_of_the_formats_own_writer(
    described: dict[str, tuple[tuple[int, ...], str]],
) -> None:
    tensors = {
        name: np.arange(np.prod(shape)).reshape(shape).astype(kind)
        for name, (shape, kind) in described.items()
    }

    assert b"".join(numeric_parts(tensors)) == save(tensors)


@given(st.dictionaries(NAMES, SHAPES))
def test_views_of_a_mapped_file_are_the_tensors(shapes: dict[str, tuple[int, ...]]) -> None:
    tensors = {name: np.ones(shape, dtype=np.float32) for name, shape in shapes.items()}
    data = tensors_to_bytes(tensors)

    for found in (tensors_from_bytes(data), tensors_from_bytes(memoryview(data))):
        assert found.keys() == tensors.keys()
        assert all((found[name] == tensors[name]).all() for name in tensors)
        assert all(found[name].shape == tensors[name].shape for name in tensors)


def model(header: object, body: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        model(b"[1]"),
        model(b"[" * 100_000),
        model({"w": 1}),
        model({"w": TENSOR | {"dtype": "F64"}}),
        model({"w": TENSOR | {"shape": [3]}}),
        model({"w": TENSOR | {"shape": [-2]}}),
        model({"w": TENSOR | {"shape": [2.0]}}),
        model({"w": TENSOR | {"shape": "2"}}),
        model({"w": TENSOR | {"data_offsets": [0, 12]}}),
        model({"w": TENSOR | {"data_offsets": [-8, 0]}}),
        model({"w": TENSOR | {"data_offsets": ["0", "8"]}}),
        model({"w": TENSOR, "v": TENSOR}),
        model({"w": TENSOR}, b"\0" * 9),
        model({"w": TENSOR}, b"\0" * 7),
        model({"w": TENSOR}, struct.pack("<2f", 1.0, float("nan"))),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    for form in (data, memoryview(data)):
        with pytest.raises(ProtocolError):
            tensors_from_bytes(form)
