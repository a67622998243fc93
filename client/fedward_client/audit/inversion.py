"""Layer 3 of the audit, part two: what an update gives away about single patients' inputs.

The attacks are the oldest ones. A fully connected first layer has the gradients dW = sum b_i x_i
and db = sum b_i, so that dW / db is a mean of inputs, and with one patient the input itself. A
table of words has a gradient in the rows of the words that were there, and in no other row. They
are tried on one patient's update, on the sum of one draw and on the sum over all sites, without
noise and with the study's. It shows why a sum is not privacy, and proves not that nothing else
leaks.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import nn

from fedward_client.audit.report import Finding
from fedward_client.audit.sensitivity import AuditPorts, StepProbe
from fedward_client.training.patient_dp.back_end import Chunk, trainable_parameters
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_client.training.weights import load_weights
from fedward_common.privacy.clipping import clip_l2
from fedward_common.privacy.randomness import Float64Array
from fedward_common.study.spec import StudySpec

PATIENTS = 32
RECOVERED = 0.9
"""A patient counts as recovered when a guess correlates this much with the patient's inputs."""
FEWEST_INPUTS = 4
"""Below that, chance alone correlates."""


def inversion_findings(study: StudySpec, *, probe: StepProbe, ports: AuditPorts) -> list[Finding]:
    """One finding: the share of made-up patients recovered from updates, with and without noise.

    None where no attack fits the model's first layer: see `why_not_tried`.
    """
    model = probe.model()
    load_weights(model, probe.start)
    sites = len(study.sites)
    features, labels = probe.task.examples(device=torch.device("cpu"))(PATIENTS * sites)
    attack = _attack(model, inputs=probe.inputs, noise_std=probe.plan.noise_std)
    if attack is None:
        return []
    back_end = LoopBackEnd(model, loss=probe.task.losses)
    sizes = torch.ones(len(labels), dtype=torch.int64)
    chunk = Chunk(features=features, labels=labels, sizes=sizes)
    rows = torch.cat(list(back_end.patient_gradients(chunk)))
    clipped = clip_l2(rows, clip_norm=probe.plan.clip_norm).numpy()
    inputs = attack.wanted(features)
    alone = [attack.recovered(row, inputs[i : i + 1]) for i, row in enumerate(clipped[:PATIENTS])]
    cuts = [PATIENTS * number for number in range(sites + 1)]
    sums = [clipped[a:b].sum(axis=0) for a, b in pairwise(cuts)]
    one_site = attack.recovered(sums[0], inputs[:PATIENTS])
    all_sites = attack.recovered(np.sum(sums, axis=0), inputs)
    noise = probe.plan.noise_std
    noised = [
        attack.recovered(row + noise * ports.noise.normal(len(row)), inputs[i : i + 1])
        for i, row in enumerate(clipped[:PATIENTS])
    ]
    with_noise = sum(noised) / PATIENTS
    shares = (
        f"without noise: {sum(alone) / PATIENTS:.0%} of patients from their own update, "
        f"{one_site / PATIENTS:.0%} from the sum of {PATIENTS}, {all_sites / len(inputs):.0%} from "
        f"the sum of {sites} sites; with the study's noise: {with_noise:.0%} from their own update"
    )
    return [
        Finding.at_most(
            "gradient-inversion",
            with_noise,
            1.0,
            layer=3,
            unit=f"share of made-up patients whose {attack.what} are recovered (correlation above "
            f"{RECOVERED}); {shares}",
            proves=f"what somebody learns who {attack.how}; the figures without noise are why "
            "sums alone are not called private.",
            does_not_prove="that nothing else can be learned: there are stronger attacks, and "
            "epsilon, not this figure, bounds them all.",
        )
    ]


def why_not_tried(probe: StepProbe) -> tuple[str, ...]:
    """Why gradient inversion is not tried on the model; nothing where it is."""
    model = probe.model()
    if _attack(model, inputs=probe.inputs, noise_std=probe.plan.noise_std) is not None:
        return ()
    first = _first_layer(model)
    kind = "none" if first is None else type(first[1]).__name__
    return (
        "gradient-inversion: it needs a first layer that is trained and either dense on all of "
        f"{FEWEST_INPUTS} or more inputs, with a bias, or a table of words; this model's is "
        f"{kind}. That says nothing about what other attacks recover.",
    )


class _Attack(Protocol):
    """One way from a gradient to a patient's inputs."""

    what: str
    how: str

    def wanted(self, features: torch.Tensor) -> Float64Array:
        """What is to be recovered of each record, [records, numbers]."""
        ...

    def recovered(self, gradient: Float64Array, inputs: Float64Array) -> int:
        """How many rows of `inputs` some guess from the gradient correlates with."""
        ...


class _Quotient:
    """Divides the weight gradient of a dense layer by its bias gradient."""

    what = "inputs"
    how = "divides a layer's weight gradient by its bias gradient"

    def __init__(self, model: nn.Module, layer: str) -> None:
        self._weight = _place(model, f"{layer}.weight")
        self._bias = _place(model, f"{layer}.bias")
        self._inputs = model.get_parameter(f"{layer}.weight").shape[1]

    def wanted(self, features: torch.Tensor) -> Float64Array:
        """The inputs themselves."""
        return features.numpy().astype(np.float64)

    def recovered(self, gradient: Float64Array, inputs: Float64Array) -> int:
        """How many rows of `inputs` some neuron's quotient correlates with."""
        weights = gradient[self._weight].reshape(-1, self._inputs)
        bias = gradient[self._bias]
        active = np.abs(bias) > 0
        return _matched(list(weights[active] / bias[active, None]), inputs)


class _Words:
    """Reads off which rows of a table of words have a gradient."""

    what = "words"
    how = "looks which rows of the table of words have a gradient"

    def __init__(self, model: nn.Module, layer: str, *, noise_std: float) -> None:
        self._model, self._layer = model, model.get_submodule(layer)
        self._table = _place(model, f"{layer}.weight")
        self._rows, width = model.get_parameter(f"{layer}.weight").shape
        # A row of pure noise is below this but for a chance in thousands; whoever attacks knows it.
        self._floor = noise_std * (math.sqrt(width) + 3.0)

    def wanted(self, features: torch.Tensor) -> Float64Array:
        """Which rows of the table each record looks up, 0 or 1."""
        looked_up: list[torch.Tensor] = []
        hook = self._layer.register_forward_pre_hook(lambda _, given: looked_up.append(given[0]))
        with torch.inference_mode():
            self._model(features)
        hook.remove()
        there = np.zeros((len(features), self._rows))
        for numbers in looked_up:
            for record, row in enumerate(numbers.reshape(len(features), -1).numpy()):
                there[record, row] = 1.0
        return there

    def recovered(self, gradient: Float64Array, inputs: Float64Array) -> int:
        """How many rows of `inputs` the table's rows with a gradient correlate with."""
        lengths = np.linalg.norm(gradient[self._table].reshape(self._rows, -1), axis=1)
        guesses = [np.float64(lengths > 0), np.float64(lengths > self._floor), lengths]
        return _matched(guesses, inputs)


def _place(model: nn.Module, name: str) -> slice:
    """Where a parameter's numbers are among all that are trained."""
    trained = trainable_parameters(model)
    starts = np.concatenate([[0], np.cumsum([p.numel() for p in trained.values()])])
    number = list(trained).index(name)
    return slice(int(starts[number]), int(starts[number + 1]))


def _matched(guesses: Sequence[Float64Array], inputs: Float64Array) -> int:
    return sum(any(_alike(guess, row) for guess in guesses) for row in inputs)


def _alike(guess: Float64Array, row: Float64Array) -> bool:
    if guess.std() == 0 or row.std() == 0:
        return False
    return bool(abs(np.corrcoef(guess, row)[0, 1]) > RECOVERED)


def _first_layer(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The first layer that has parameters of its own, and its name."""
    layers = (
        (name, module)
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    )
    return next(layers, None)


def _attack(model: nn.Module, *, inputs: int, noise_std: float) -> _Attack | None:
    """The attack on the layer that sees the inputs at once; None of convolutions and the like."""
    name, module = _first_layer(model) or ("", None)
    if module is None or not all(p.requires_grad for p in module.parameters(recurse=False)):
        return None
    if isinstance(module, nn.Embedding):
        return _Words(model, name, noise_std=noise_std)
    if (
        isinstance(module, nn.Linear)
        and module.in_features == inputs >= FEWEST_INPUTS
        and module.bias is not None
    ):
        return _Quotient(model, name)
    return None
