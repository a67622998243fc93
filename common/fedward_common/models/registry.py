"""Models by the name a study gives them: built and initialised alike on every machine."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from fedward_common.arrays import Array, Tensors
from fedward_common.errors import ConfigError, ProtocolError
from fedward_common.models.autoencoder import autoencoder, variational_autoencoder
from fedward_common.models.bert import bert
from fedward_common.models.feature_transformer import ft_transformer
from fedward_common.models.filter_bank import filter_bank
from fedward_common.models.gan import gan
from fedward_common.models.graphs import graph_network
from fedward_common.models.gru_d import gru_d
from fedward_common.models.imaging import cnn, densenet121, resnet18, resnet50, unet
from fedward_common.models.loci import locus_cnn
from fedward_common.models.low_rank import adapt
from fedward_common.models.multimodal import multimodal
from fedward_common.models.recurrent import gru, lstm
from fedward_common.models.sequences import cnn1d, sequence_transformer
from fedward_common.models.standardised import standardise
from fedward_common.models.survival import proportional_hazards
from fedward_common.models.tabular import logistic_regression, mlp
from fedward_common.models.text import (
    bilstm,
    relation_bilstm,
    relation_transformer,
    text_transformer,
)
from fedward_common.study.spec import ModelSpec

ModelFactory = Callable[[ModelSpec, int], nn.Module]
"""(spec, number of inputs) -> a model with one logit per record, deterministic in its arguments."""


def _multimodal(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `multimodal`, of encoders that are in this registry."""
    return multimodal(spec, inputs, build=build_model)


def _hazards(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `proportional-hazards`, of several modalities with such encoders."""
    return proportional_hazards(spec, inputs, build=build_model)


_FACTORIES: dict[str, ModelFactory] = {
    "logistic-regression": logistic_regression,
    "linear": logistic_regression,
    "mlp": mlp,
    "proportional-hazards": _hazards,
    "cnn": cnn,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "unet": unet,
    "filter-bank": filter_bank,
    "densenet121": densenet121,
    "locus-cnn": locus_cnn,
    "gru": gru,
    "lstm": lstm,
    "gru-d": gru_d,
    "ft-transformer": ft_transformer,
    "bert": bert,
    "bilstm": bilstm,
    "text-transformer": text_transformer,
    "relation-bilstm": relation_bilstm,
    "relation-transformer": relation_transformer,
    "cnn1d": cnn1d,
    "graph-network": graph_network,
    "sequence-transformer": sequence_transformer,
    "multimodal": _multimodal,
    "autoencoder": autoencoder,
    "variational-autoencoder": variational_autoencoder,
    "gan": gan,
}


def register_model(name: str) -> Callable[[ModelFactory], ModelFactory]:
    """A decorator that makes a factory known as `name`.

    Raises:
        ValueError: the name is taken; a study must mean the same model at every site.
    """

    def add(factory: ModelFactory) -> ModelFactory:
        if name in _FACTORIES:
            raise ValueError(f"model {name!r}: expected a name that is not taken")
        _FACTORIES[name] = factory
        return factory

    return add


def is_known(name: str) -> bool:
    """Whether a model of this name can be built here."""
    return name in _FACTORIES


def build_model(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model of `spec` for `inputs` inputs, on the CPU, float32, with its initial weights.

    The output is one logit per record, shape [records]. Equal arguments give equal weights, bit
    for bit; torch's global generator is neither read nor advanced.

    Raises:
        ConfigError: an unknown model, sizes that the model does not take, or no input.
    """
    if inputs < 1:
        raise ConfigError(f"model {spec.name}: expected at least one input, found {inputs}")
    factory = _FACTORIES.get(spec.name)
    if factory is None:
        raise ConfigError(f"model.name: expected one of {sorted(_FACTORIES)}, found {spec.name!r}")
    model = factory(spec, inputs)
    if spec.weight_standardisation:
        standardise(model)
    if spec.lora is not None:
        adapt(model, spec, spec.lora)
    return model


def initial_tensors(spec: ModelSpec, inputs: int) -> dict[str, Array]:
    """The initial weights of `spec` by name, as `model_tensors` gives them; float32.

    Raises:
        ConfigError: as `build_model`.
    """
    return model_tensors(build_model(spec, inputs))


def model_shapes(spec: ModelSpec, inputs: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes that every set of weights of `spec` has.

    Raises:
        ConfigError: as `build_model`.
    """
    return dict(_shapes(spec, inputs))


@lru_cache(maxsize=16)
def _shapes(spec: ModelSpec, inputs: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Asked at every step of a study, and a model is slow to build."""
    return tuple((name, t.shape) for name, t in initial_tensors(spec, inputs).items())


def model_tensors(model: nn.Module) -> dict[str, Array]:
    """A copy of every tensor of the model's state, each once, as float32 arrays, names sorted."""
    return {
        name: np.array(tensor.detach().cpu().numpy(), dtype=np.float32)
        for name, tensor in sorted(_own_state(model).items())
    }


def load_tensors(model: nn.Module, tensors: Tensors) -> None:
    """Copies `tensors`, which `model_tensors` of an equal model made, into `model`.

    Raises:
        ProtocolError: a name or a shape differs.
    """
    state = _own_state(model)
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = {name: tuple(array.shape) for name, array in tensors.items()}
    if found != expected:
        raise ProtocolError(f"weights: expected {expected}, found {found}")
    with torch.no_grad():
        for name, array in tensors.items():
            # A copy: the arrays may be read-only views of the message they came in.
            state[name].copy_(torch.tensor(array))


def _own_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of the state_dict themselves, each by the name that its gradient has.

    Opacus' recurrent cells list each parameter under a second name. Both would travel, the second
    one without a gradient, and the second one would win when they are loaded.
    """
    trained = dict(model.named_parameters())
    known = {id(parameter) for parameter in trained.values()}
    return {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name in trained or id(tensor) not in known
    }
