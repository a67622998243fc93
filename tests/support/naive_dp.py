"""A third implementation of patient-level DP-SGD: numpy, float64, one record after another.

Written from the formulas and sharing no code with the engine or its back ends (rules 24). Slow on
purpose: each line can be read next to the paper. Also here: sources of randomness with no chance
in them, so that a step can be computed by hand.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Weights = Mapping[str, npt.NDArray[np.float64]]
Gradient = dict[str, npt.NDArray[np.float64]]
Patient = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Features [records, inputs] and labels [records] of one patient."""

LAYER_NORM_EPSILON = 1e-5


class NoNoise:
    """A noise source that adds nothing, so that a step returns the clipped sum."""

    def uniform(self, count: int) -> Vector:
        raise AssertionError("the noise source was asked for uniforms")

    def normal(self, count: int) -> Vector:
        return np.zeros(count)


class FirstInLine:
    """A sampling source of ascending uniforms: at q = 1 all patients enter, with first records."""

    def uniform(self, count: int) -> Vector:
        return np.arange(count) / max(count, 1)

    def normal(self, count: int) -> Vector:
        raise AssertionError("the sampling source was asked for normals")


class Scripted:
    """A source that hands out prepared numbers and refuses any other count."""

    def __init__(self, *answers: Sequence[float]) -> None:
        self._answers = [np.asarray(answer, dtype=np.float64) for answer in answers]

    def uniform(self, count: int) -> Vector:
        return self._next(count)

    def normal(self, count: int) -> Vector:
        return self._next(count)

    def _next(self, count: int) -> Vector:
        answer = self._answers.pop(0)
        assert len(answer) == count, f"the script has {len(answer)} numbers, {count} were asked for"
        return answer


class Repeatable:
    """A pseudo-random source with a seed: exactly what shipped code must not offer."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def uniform(self, count: int) -> Vector:
        return self._generator.random(count)

    def normal(self, count: int) -> Vector:
        return self._generator.standard_normal(count)


def logistic_gradient(weights: Weights, features: Vector, label: float) -> Gradient:
    """d/dw of -log p(label) for p = sigmoid(w x + b): (p - label) x."""
    logit = float(weights["linear.weight"][0] @ features + weights["linear.bias"][0])
    error = _sigmoid(logit) - label
    return {"linear.weight": error * features[None, :], "linear.bias": np.array([error])}


def mlp_gradient(weights: Weights, features: Vector, label: float) -> Gradient:
    """The same loss through blocks of Linear, LayerNorm and ReLU, by the chain rule."""
    depth = sum(1 for name in weights if name.startswith("hidden.")) // 4
    gradient: Gradient = {}
    inputs, trace = features, []
    for block in range(depth):
        linear, norm = f"hidden.{3 * block}", f"hidden.{3 * block + 1}"
        z = weights[f"{linear}.weight"] @ inputs + weights[f"{linear}.bias"]
        spread = np.sqrt(np.mean((z - z.mean()) ** 2) + LAYER_NORM_EPSILON)
        unit = (z - z.mean()) / spread
        before_relu = weights[f"{norm}.weight"] * unit + weights[f"{norm}.bias"]
        trace.append((linear, norm, inputs, spread, unit, before_relu))
        inputs = np.where(before_relu > 0, before_relu, 0.0)
    logit = float(weights["output.weight"][0] @ inputs + weights["output.bias"][0])
    error = _sigmoid(logit) - label
    gradient["output.weight"], gradient["output.bias"] = error * inputs[None, :], np.array([error])
    back = error * weights["output.weight"][0]
    for linear, norm, block_inputs, spread, unit, before_relu in reversed(trace):
        back = np.where(before_relu > 0, back, 0.0)
        gradient[f"{norm}.weight"], gradient[f"{norm}.bias"] = back * unit, back
        scaled = back * weights[f"{norm}.weight"]
        back = (scaled - scaled.mean() - unit * np.mean(scaled * unit)) / spread
        gradient[f"{linear}.weight"] = np.outer(back, block_inputs)
        gradient[f"{linear}.bias"] = back
        back = weights[f"{linear}.weight"].T @ back
    return gradient


def record_gradient(weights: Weights, features: Vector, label: float) -> Gradient:
    """The gradient of one record, by whichever of the two models the weights belong to."""
    model = logistic_gradient if "linear.weight" in weights else mlp_gradient
    return model(weights, features, label)


def clipped_sum(weights: Weights, patients: Sequence[Patient], *, clip_norm: float) -> Gradient:
    """The sum over patients of their mean gradients, each clipped to `clip_norm`."""
    total = {name: np.zeros_like(array) for name, array in weights.items()}
    for features, labels in patients:
        mean = {name: np.zeros_like(array) for name, array in weights.items()}
        for row, label in zip(features, labels, strict=True):
            for name, part in record_gradient(weights, row, float(label)).items():
                mean[name] += part / len(labels)
        norm = np.sqrt(sum(float((part**2).sum()) for part in mean.values()))
        for name, part in mean.items():
            total[name] += part if norm <= clip_norm else part * (clip_norm / norm)
    return total


def _sigmoid(logit: float) -> float:
    return float(1.0 / (1.0 + np.exp(-logit))) if logit >= 0 else float(1 - _sigmoid(-logit))
