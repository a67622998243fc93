"""Layers of Opacus that offer per-record gradients where torch's own do not, and a quiet import.

Importing this module imports nothing of Opacus; its functions do.
"""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

from torch import nn

_WHOLE_SERIES: Final = "fedward_common.models.whole_series"
DpLayerName = Literal["lstm", "gru", "multihead-attention"]


def load_opacus() -> None:
    """Imports Opacus and leaves the process's logging as it was.

    Opacus 1.6.0 calls `logging.basicConfig` when it is imported, which would send every library's
    log lines past Fedward's field allow-list to stderr. `basicConfig` does nothing while the root
    logger has a handler, so it gets one for as long as the import takes.
    """
    root = logging.getLogger()
    placeholder = logging.NullHandler()
    root.addHandler(placeholder)
    try:
        import opacus.grad_sample  # noqa: F401, PLC0415 - costs a second; only who needs it pays
    finally:
        root.removeHandler(placeholder)
    # Inputs are data, not parameters: they need no gradient, and torch warns about just that.
    warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients")


def dp_layer(name: DpLayerName) -> type[nn.Module]:
    """The Opacus replacement of a recurrent or attention layer, for models on all back ends."""
    load_opacus()
    from opacus.layers import DPMultiheadAttention  # noqa: PLC0415 - as above

    from fedward_common.models.whole_series import Gru, Lstm  # noqa: PLC0415 - as above

    layers: dict[DpLayerName, type[nn.Module]] = {
        "lstm": Lstm,
        "gru": Gru,
        "multihead-attention": DPMultiheadAttention,
    }
    return layers[name]


def whole_series_layers(model: nn.Module) -> list[Any]:
    """The LSTMs and GRUs of `model` that `dp_layer` made; imports nothing."""
    return [layer for layer in model.modules() if type(layer).__module__ == _WHOLE_SERIES]


@contextmanager
def observed(layers: Iterable[Any], observer: Callable[..., None]) -> Iterator[None]:
    """Each of `layers` tells `observer` of its cells inside the block (`whole_series.Observer`).

    A call that it could not be told of raises ModelRefused.
    """
    layers = list(layers)
    handles = []
    try:
        for layer in layers:
            layer.observer = observer
            handles += [c.register_forward_pre_hook(layer.refuse_steps) for c in layer.cells]
        yield
    finally:
        for layer in layers:
            layer.observer = None
        for handle in handles:
            handle.remove()


def as_opacus(model: nn.Module) -> Callable[[], None]:
    """Gives LSTMs and GRUs of `model` Opacus' own class, the only one that its engine knows.

    Parameters, names and results stay; only the way to them is the slower one. What is returned
    undoes it.
    """
    changed = [(layer, type(layer)) for layer in whole_series_layers(model)]

    def undo() -> None:
        for layer, kind in changed:
            layer.__class__ = kind

    for layer, kind in changed:
        layer.__class__ = kind.opacus
    return undo
