"""Layers of Opacus that offer per-record gradients where torch's own do not, and a quiet import.

Importing this module imports nothing of Opacus; its functions do.
"""

import logging
import warnings
from typing import Literal

from torch import nn

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
    """The Opacus replacement of a recurrent or attention layer, for models on both back ends."""
    load_opacus()
    from opacus.layers import DPGRU, DPLSTM, DPMultiheadAttention  # noqa: PLC0415 - as above

    layers: dict[DpLayerName, type[nn.Module]] = {
        "lstm": DPLSTM,
        "gru": DPGRU,
        "multihead-attention": DPMultiheadAttention,
    }
    return layers[name]
