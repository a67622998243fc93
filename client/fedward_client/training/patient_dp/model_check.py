"""Refuses, before any patient is read, models for which a patient-level guarantee would be false.

Every probe runs on made-up records. Each rule is there because the failure was measured to be
silent: training goes on and the guarantee is gone. Rules that a name settles come first; the rest
is found by watching the model work.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fedward_client.tasks.task import ExampleRecords, LossFunction
from fedward_client.training.patient_dp.back_end import (
    BackEnd,
    Chunk,
    Precision,
    record_losses,
    trainable_parameters,
)
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_common.errors import ModelRefused

_PROBE_SIZES = (3, 1, 2)
_TOLERANCE = 1e-4
"""Relative. Rounding stays below 1e-5; mixed or wrong gradients are off by 1e-2 and more."""


def check_model(model: nn.Module, *, loss: LossFunction, examples: ExampleRecords) -> None:
    """Returns when `model` may be trained; otherwise raises ModelRefused naming the layer.

    1. No BatchNorm in any form, no running statistics, no padding but zeros, no in-place layer.
    2. Something to train.
    3. No layer's input or output is changed in place after the layer saw it.
    4. The loss is one number for each record.
    5. No buffer and no frozen parameter changes in a forward pass.
    6. Every trainable parameter gets a gradient.

    Not checked here: that gradients of different patients stay apart on the back end that will run
    (`checked_back_end`), and that point 5 held all through training (the trainer does).
    """
    for name, module in model.named_modules():  # 1
        _check_layer(name or type(model).__name__, module)
    parameters = trainable_parameters(model)
    if not parameters:  # 2
        raise ModelRefused(f"{type(model).__name__}: expected a trainable parameter, found none")
    before = untrained_state(model)
    features, labels = examples(sum(_PROBE_SIZES))
    with _same_torch_randomness(), _explained(model), _watched(model) as seen:
        losses = record_losses(model, loss=loss, features=features, labels=labels)  # 4
        _check_versions(seen)  # 3
        check_untrained_state(model, before=before)  # 5
        gradients = torch.autograd.grad(losses.sum(), list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):  # 6
        if gradient is None:
            raise ModelRefused(
                f"parameter {name}: expected a gradient, found none; use it in the forward pass or "
                f"set requires_grad to False"
            )


def checked_back_end(
    make: Callable[[], BackEnd],
    model: nn.Module,
    *,
    loss: LossFunction,
    examples: ExampleRecords,
    most_records: int = max(_PROBE_SIZES),
    precision: Precision = "float32",
    pass_records: int | None = None,
) -> BackEnd:
    """The back end that `make` puts on `model`, once it was right on made-up patients.

    1. A patient alone has the gradient that plain autograd gives in this precision, in passes of
       at most `pass_records` records.
    2. A patient's gradient is the same whoever else is in the chunk.

    No probe has more than `most_records` records a patient.

    Raises:
        ModelRefused: one of the two does not hold; names the parameter that is furthest off.
    """
    sizes = tuple(min(size, most_records) for size in _PROBE_SIZES)
    features, labels = examples(sum(sizes))
    together = Chunk(features=features, labels=labels, sizes=torch.tensor(sizes))
    first = sizes[0]
    alone = Chunk(features=features[:first], labels=labels[:first], sizes=together.sizes[:1])
    others_features, others_labels = examples(sum(sizes))
    exchanged = replace(
        together,
        features=torch.cat([features[:first], others_features[first:]]),
        labels=torch.cat([labels[:first], 1 - others_labels[first:]]),
    )
    with _explained(model):
        reference = LoopBackEnd(model, loss=loss, precision=precision, most_records=pass_records)
        expected = _first_gradient(reference, alone)
        back_end = make()
        _compare(model, _first_gradient(back_end, alone), expected)  # 1
        with_some = _first_gradient(back_end, together)
        _compare(model, _first_gradient(back_end, exchanged), with_some)  # 2
    return back_end


def untrained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the buffers and frozen parameters: all state that no noisy gradient reaches."""
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return {name: t.clone() for name, t in (frozen | dict(model.named_buffers())).items()}


def check_untrained_state(model: nn.Module, *, before: dict[str, torch.Tensor]) -> None:
    """Returns when `untrained_state` is still `before`; raises ModelRefused naming what is not.

    A buffer that follows the data would leave the site in the state_dict without noise.
    """
    after = untrained_state(model)
    for name in sorted(before.keys() | after.keys()):
        same = name in before and name in after and torch.equal(before[name], after[name])
        if not same:
            raise ModelRefused(
                f"buffer {name}: expected a constant, found one that changes in a forward pass; it "
                f"would carry patient data into the released model without noise"
            )


def _check_layer(name: str, module: nn.Module) -> None:
    kind = type(module).__name__
    if any("batchnorm" in parent.__name__.lower() for parent in type(module).__mro__):
        raise ModelRefused(
            f"layer {name} ({kind}): BatchNorm mixes patients and keeps their statistics, frozen "
            f"or not; expected GroupNorm or LayerNorm"
        )
    if isinstance(module, _NormBase) and module.track_running_stats:
        raise ModelRefused(
            f"layer {name} ({kind}): expected track_running_stats = False; running statistics of "
            f"patients would be released without noise"
        )
    if isinstance(module, _ConvNd) and module.padding_mode != "zeros":
        raise ModelRefused(
            f"layer {name} ({kind}): expected padding_mode = 'zeros', found "
            f"{module.padding_mode!r}; per-record gradients are wrong with it"
        )
    if getattr(module, "inplace", False):
        raise ModelRefused(
            f"layer {name} ({kind}): expected inplace = False; it overwrites what the layer before "
            f"it needs for the per-record gradient"
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Seen:
    """A tensor that went through a layer, with torch's count of its in-place changes then."""

    layer: str
    tensor: torch.Tensor
    version: int


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[_Seen]]:
    """The inputs and outputs of every layer in the forward passes inside the block."""
    seen: list[_Seen] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def remember(_module: nn.Module, inputs: object, output: object) -> None:
            for tensor in _tensors((inputs, output)):
                seen.append(_Seen(layer=name, tensor=tensor, version=tensor._version))

        return remember

    handles = [
        module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _check_versions(seen: list[_Seen]) -> None:
    for entry in seen:
        if entry.tensor._version != entry.version:
            raise ModelRefused(
                f"layer {entry.layer}: expected its input and output to stay as they are, found "
                f"one changed in place later; write out = out + x and not out += x"
            )


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


@contextmanager
def _same_torch_randomness() -> Iterator[None]:
    """torch's own generators as they were before the block, so that dropout masks repeat.

    They have no part in sampling or noise.
    """
    with torch.random.fork_rng():
        yield


@contextmanager
def _explained(model: nn.Module) -> Iterator[None]:
    """Turns what torch or Opacus raises on made-up records into a refusal."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise ModelRefused(
            f"{type(model).__name__}: expected a model that runs forward and backward on made-up "
            f"records, found an error: {error}"
        ) from error


def _first_gradient(back_end: BackEnd, chunk: Chunk) -> torch.Tensor:
    with _same_torch_randomness():
        return torch.cat(list(back_end.patient_gradients(chunk)))[0].to(torch.float64)


def _compare(model: nn.Module, found: torch.Tensor, expected: torch.Tensor) -> None:
    allowed = _TOLERANCE * float(torch.linalg.vector_norm(expected))
    difference = (found - expected).abs()
    if bool(torch.linalg.vector_norm(difference) <= allowed):
        return
    parameters = trainable_parameters(model)
    parts = torch.split(difference, [parameter.numel() for parameter in parameters.values()])
    worst = max(zip(parts, parameters, strict=True), key=lambda pair: float(pair[0].norm()))[1]
    raise ModelRefused(
        f"parameter {worst}: expected a patient's gradient that no other patient changes and that "
        f"equals autograd's, found another on this back end; a layer or the loss mixes records, "
        f"or the back end does not support it"
    )
