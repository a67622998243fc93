"""The weights that a study's first round begins with: by a seed, or out of the file it names."""

from typing import Final

from fedward_common.arrays import Array, Tensors, tensors_from_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError, ProtocolError
from fedward_common.models.registry import initial_tensors, model_shapes
from fedward_common.study.spec import ModelSpec
from fedward_common.wire import Octets

Shapes = dict[str, tuple[int, ...]]
SHOWN: Final = 4


def start_tensors(spec: ModelSpec, inputs: int, *, file: Octets | None = None) -> dict[str, Array]:
    """The weights of `spec` before the first round, as `initial_tensors` where no file is named.

    `file`: the bytes of the file that `spec.start` names.

    Raises:
        ConfigError: no file where one is named, another than that, or not exactly the tensors that
            it is to hold, in the model's shapes, float32 and finite.
    """
    weights = initial_tensors(spec, inputs)
    if spec.start is None:
        return weights
    if file is None or sha256_hex(file) != spec.start.sha256:
        raise ConfigError(
            f"model.start: expected the file with SHA-256 {spec.start.sha256}, as the study says, "
            f"found {'none' if file is None else 'another'}; give it with --start-weights"
        )
    try:
        found = tensors_from_bytes(bytes(file))
    except ProtocolError as error:
        raise ConfigError(f"model.start: {error}") from error
    _check_shapes({name: array.shape for name, array in found.items()}, start_shapes(spec, inputs))
    return {**weights, **{_placed(name, weights): array for name, array in found.items()}}


def _placed(name: str, weights: Tensors) -> str:
    """The name in the study's model of a tensor of the model without adapters."""
    layer, _, part = name.rpartition(".")
    return name if name in weights else f"{layer}.base.{part}"


def _check_shapes(found: Shapes, expected: Shapes) -> None:
    """Returns when both are the same. Raises ConfigError, which names the first few others."""
    wrong = [
        f"{name} {expected.get(name, 'not at all')} (found {found.get(name, 'none')})"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ConfigError(
            f"model.start: expected the tensors {', '.join(wrong[:SHOWN])}{more}; it has to hold "
            "exactly those of model.start.tensors"
        )


def start_shapes(spec: ModelSpec, inputs: int) -> Shapes:
    """Names and shapes of what the file holds; none where no file is named.

    They are those of the model without adapters: an adapter begins by the model's seed.

    Raises:
        ConfigError: a beginning of a name that no tensor of the model has.
    """
    if spec.start is None:
        return {}
    shapes = model_shapes(spec.model_copy(update={"lora": None}), inputs)
    for prefix in spec.start.tensors:
        if not any(name.startswith(prefix) for name in shapes):
            raise ConfigError(
                f"model.start.tensors: expected the beginning of a tensor's name, found {prefix!r};"
                f" the model has {', '.join(shapes)}"
            )
    return {name: shape for name, shape in shapes.items() if spec.start.holds(name)}
