"""Named tensors as bytes and back: safetensors only, checked before anything looks inside.

Nothing here can execute what it reads: the format is a JSON header and raw numbers.
"""

import json
import math
import mmap
import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from fedward_common.errors import ProtocolError
from fedward_common.wire import Octets

Array = npt.NDArray[np.float32]
Tensors = Mapping[str, Array]
"""Name -> float32 array. The order of names is the sorted order wherever order matters."""

MAX_TENSOR_BYTES = 4 << 30
MAX_HEADER_BYTES: Final = 1 << 20
BLOCK: Final = 1 << 18
"""Numbers that are looked at at a time: what is as large as a model is not made twice."""

_LENGTH = struct.Struct("<Q")
_DTYPES: Final = {"int64": "I64", "float64": "F64", "float32": "F32", "int32": "I32"}
"""Names of types, in the order in which the format writes them."""


def tensors_to_bytes(tensors: Tensors) -> bytes:
    """The safetensors bytes of `tensors`, names sorted, so that equal tensors give equal bytes.

    Raises:
        ProtocolError: an array is not float32.
    """
    return b"".join(tensor_parts(tensors))


def tensor_parts(tensors: Tensors) -> list[Octets]:
    """`tensors_to_bytes` in pieces, one after the other, which are not copies.

    Raises:
        ProtocolError: an array is not float32.
    """
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise ProtocolError(f"tensor {name}: expected float32, found {array.dtype}")
    return numeric_parts(tensors)


def numeric_parts(tensors: Mapping[str, npt.NDArray[Any]]) -> list[Octets]:
    """The safetensors bytes of numbers of several types in pieces, which are not copies.

    Source: the format's own writer, which sorts by type and then by name; the tests hold the two
    equal.
    """
    order = list(_DTYPES)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype.name), name))
    arrays = [np.ascontiguousarray(tensors[name]) for name in names]
    entries, end = {}, 0
    for name, array in zip(names, arrays, strict=True):
        entries[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(tensors[name].shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % _LENGTH.size)
    return [
        _LENGTH.pack(len(header)) + header,
        *(array.data.cast("B") for array in arrays if array.size),
    ]


def tensors_from_bytes(
    data: Octets, *, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Array]:
    """The tensors in `data`: float32, finite and, with `shapes`, exactly those names and shapes.

    Of a mapped file they are views that cannot be written to, not copies.

    Raises:
        ProtocolError: not safetensors, another dtype, a non-finite number, another name or shape.
    """
    if len(data) > MAX_TENSOR_BYTES:
        raise ProtocolError(
            f"tensors: expected at most {MAX_TENSOR_BYTES} bytes, found {len(data)}"
        )
    try:
        tensors = load(data) if isinstance(data, bytes) else _views(data)
    except (
        SafetensorError,
        ValueError,
        KeyError,
        OverflowError,
        TypeError,
        RecursionError,
    ) as error:
        raise ProtocolError("tensors: expected safetensors bytes, found something else") from error
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise ProtocolError(f"tensor {name}: expected float32, found {array.dtype}")
        if not is_finite(array):
            raise ProtocolError(f"tensor {name}: expected finite numbers, found NaN or infinity")
    if shapes is not None:
        found = {name: tuple(array.shape) for name, array in tensors.items()}
        if found != dict(shapes):
            raise ProtocolError(
                f"tensors: expected {sorted(shapes.items())}, found {sorted(found.items())}"
            )
    return {name: tensors[name] for name in sorted(tensors)}


def is_mapped(array: Array) -> bool:
    """Whether an array is a view of a mapped file, which takes no memory until it is read."""
    return _mapping_of(array) is not None


def give_back(array: Array) -> None:
    """Gives back the memory that the file of a mapped array took since it was read."""
    mapping = _mapping_of(array)
    if mapping is not None:
        mapping.madvise(mmap.MADV_DONTNEED)


def _mapping_of(array: Array) -> mmap.mmap | None:
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    mapping = base.obj if isinstance(base, memoryview) else None
    return mapping if isinstance(mapping, mmap.mmap) else None


def is_finite(array: Array) -> bool:
    """Whether no number of an array is NaN or infinity; looked at in slices."""
    flat = array.reshape(-1)
    return all(
        bool(np.isfinite(flat[start : start + BLOCK]).all()) for start in range(0, flat.size, BLOCK)
    )


def _views(data: memoryview) -> dict[str, Array]:
    """The tensors of safetensors bytes without copying them: float32 only, nothing in between.

    Raises:
        ProtocolError, ValueError, KeyError: it is something else.
    """
    if len(data) < _LENGTH.size:
        raise ValueError("header")
    (length,) = _LENGTH.unpack_from(data)
    start = _LENGTH.size + length
    if length > MAX_HEADER_BYTES or start > len(data):
        raise ValueError("header")
    header: Any = json.loads(bytes(data[_LENGTH.size : start]))
    if not isinstance(header, dict):
        raise ValueError("header")
    header.pop("__metadata__", None)
    found: dict[str, Array] = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(item[1])):
        first, last = _offsets(entry)
        shape = tuple(entry["shape"])
        if not all(type(n) is int and 0 <= n < 2**40 for n in shape) or entry["dtype"] != "F32":
            raise ProtocolError(f"tensor {name}: expected float32, found another type or shape")
        if first != end or last - first != 4 * math.prod(shape):
            raise ValueError("offsets")
        numbers = np.frombuffer(data, np.float32, count=math.prod(shape), offset=start + first)
        found[name], end = numbers.reshape(shape), last
    if start + end != len(data):
        raise ValueError("length")
    return found


def _offsets(entry: Any) -> tuple[int, int]:
    offsets = entry["data_offsets"] if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or [type(n) for n in offsets] != [int, int]:
        raise ValueError("offsets")
    return offsets[0], offsets[1]
