"""Named tensors as bytes and back: safetensors only, checked before anything looks inside.

Nothing here can execute what it reads: the format is a JSON header and raw numbers.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedward_common.errors import ProtocolError

Array = npt.NDArray[np.float32]
Tensors = Mapping[str, Array]
"""Name -> float32 array. The order of names is the sorted order wherever order matters."""

MAX_TENSOR_BYTES = 4 << 30


def tensors_to_bytes(tensors: Tensors) -> bytes:
    """The safetensors bytes of `tensors`, names sorted, so that equal tensors give equal bytes.

    Raises:
        ProtocolError: an array is not float32.
    """
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise ProtocolError(f"tensor {name}: expected float32, found {array.dtype}")
    return save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)})


def tensors_from_bytes(
    data: bytes, *, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Array]:
    """The tensors in `data`: float32, finite and, with `shapes`, exactly those names and shapes.

    Raises:
        ProtocolError: not safetensors, another dtype, a non-finite number, another name or shape.
    """
    if len(data) > MAX_TENSOR_BYTES:
        raise ProtocolError(
            f"tensors: expected at most {MAX_TENSOR_BYTES} bytes, found {len(data)}"
        )
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise ProtocolError("tensors: expected safetensors bytes, found something else") from error
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise ProtocolError(f"tensor {name}: expected float32, found {array.dtype}")
        if not np.isfinite(array).all():
            raise ProtocolError(f"tensor {name}: expected finite numbers, found NaN or infinity")
    if shapes is not None:
        found = {name: tuple(array.shape) for name, array in tensors.items()}
        if found != dict(shapes):
            raise ProtocolError(
                f"tensors: expected {sorted(shapes.items())}, found {sorted(found.items())}"
            )
    return {name: tensors[name] for name in sorted(tensors)}
