"""Layer 3 of the audit, part two: what an update gives away about single patients' inputs.

The attack is the oldest one: a fully connected first layer has the gradients dW = sum b_i x_i and
db = sum b_i, so that dW / db is a mean of inputs, and with one patient the input itself. It is
tried on one patient's update, on the sum of one draw and on the sum over all sites, without noise
and with the study's. It shows why a sum is not privacy; it is no proof that nothing else leaks.
"""

from collections.abc import Sequence
from itertools import pairwise

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
    """One finding: the share of made-up patients recovered from updates, with and without noise."""
    model = probe.model()
    load_weights(model, probe.start)
    layer = _first_linear(model, inputs=probe.inputs)
    if layer is None or probe.inputs < FEWEST_INPUTS:
        return []
    sites = len(study.sites)
    examples = probe.task.examples(device=torch.device("cpu"))
    features, labels = examples(PATIENTS * sites)
    back_end = LoopBackEnd(model, loss=probe.task.losses)
    sizes = torch.ones(len(labels), dtype=torch.int64)
    chunk = Chunk(features=features, labels=labels, sizes=sizes)
    rows = torch.cat(list(back_end.patient_gradients(chunk)))
    clipped = clip_l2(rows, clip_norm=probe.plan.clip_norm).numpy()
    inputs = features.numpy().astype(np.float64)
    attack = _Attack(model, layer)
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
            unit=f"share of made-up patients recovered (correlation above {RECOVERED}); {shares}",
            proves="what somebody learns who divides a layer's weight gradient by its bias "
            "gradient; the figures without noise are why sums alone are not called private.",
            does_not_prove="that nothing else can be learned: there are stronger attacks, and "
            "epsilon, not this figure, bounds them all.",
        )
    ]


class _Attack:
    """Divides the weight gradient of one layer by its bias gradient."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        names = list(trainable_parameters(model))
        numbers = [p.numel() for p in trainable_parameters(model).values()]
        starts = np.concatenate([[0], np.cumsum(numbers)])
        weight, bias = f"{layer}.weight", f"{layer}.bias"
        self._weight = slice(*starts[names.index(weight) :][:2])
        self._bias = slice(*starts[names.index(bias) :][:2])
        self._inputs = model.get_parameter(weight).shape[1]

    def recovered(self, gradient: Float64Array, inputs: Float64Array) -> int:
        """How many rows of `inputs` some neuron's quotient correlates with."""
        weights = gradient[self._weight].reshape(-1, self._inputs)
        bias = gradient[self._bias]
        active = np.abs(bias) > 0
        guesses: Sequence[Float64Array] = list(weights[active] / bias[active, None])
        return sum(any(_alike(guess, row) for guess in guesses) for row in inputs)


def _alike(guess: Float64Array, row: Float64Array) -> bool:
    if guess.std() == 0 or row.std() == 0:
        return False
    return bool(abs(np.corrcoef(guess, row)[0, 1]) > RECOVERED)


def _first_linear(model: nn.Module, *, inputs: int) -> str | None:
    """The name of the layer that sees all inputs at once, where it is fully connected with a bias.

    None for convolutions and recurrent layers: this attack has no quotient there.
    """
    layers = [
        (name, module) for name, module in model.named_modules() if not list(module.children())
    ]
    name, module = layers[0] if layers else ("", None)
    if (
        isinstance(module, nn.Linear)
        and module.in_features == inputs
        and module.bias is not None
        and module.weight.requires_grad
    ):
        return name
    return None
