"""Runs of one study in this process: federated averaging without noise, and distributed noise.

The second is what sites and coordinator do with `noise = "distributed"`: each site's trainer gives
its clipped whole-number sum, its share of the noise is added on the grid, and the coordinator takes
one step of the pooled data. The channel, the guard, Flower and the masks are left out: they change
no number.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fedward_client.tasks.registry import task_of
from fedward_client.training.patient_dp.back_end import BackEndName
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.arrays import Array, Tensors
from fedward_common.ids import SiteId
from fedward_common.models.autoencoder import with_chance
from fedward_common.models.averages import released_models
from fedward_common.models.dp_layers import as_opacus
from fedward_common.models.pooled_descent import PooledDescent
from fedward_common.models.registry import (
    build_model,
    initial_tensors,
    load_tensors,
    model_shapes,
    model_tensors,
)
from fedward_common.privacy.accounting import epsilon_admission, epsilon_pld
from fedward_common.privacy.mechanism import study_event
from fedward_common.privacy.randomness import Csprng
from fedward_common.secagg.fixedpoint import FixedPoint
from fedward_common.secagg.sums import summed
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_server.aggregation import server_optimiser

Tables = Mapping[SiteId, PatientRecords]


def averaged(
    study: StudySpec,
    training: Tables,
    *,
    rounds: int,
    rate: float,
    decay: float,
    batch: int = 64,
    seed: int = 1,
) -> dict[str, Array]:
    """Federated averaging, a pass of Adam over a site's records a round; nothing clipped, no noise.

    Rates fall along a cosine over the rounds.
    """
    task = task_of(study)
    spec = study.model.model_copy(update={"initial_seed": seed})
    inputs = input_size(study.data)
    shared = build_model(spec, inputs).train()
    order = torch.Generator().manual_seed(seed)
    total = sum(records.patients for records in training.values())
    for number in range(rounds):
        here = rate * (0.5 * (1 + np.cos(np.pi * number / rounds)) + 0.01)
        mean = {name: torch.zeros_like(t) for name, t in shared.state_dict().items()}
        for records in training.values():
            local = build_model(spec, inputs).train()
            local.load_state_dict(shared.state_dict())
            features = torch.from_numpy(records.features)
            labels = torch.from_numpy(records.labels)
            optimiser = torch.optim.AdamW(local.parameters(), lr=here, weight_decay=decay)
            for rows in torch.randperm(len(labels), generator=order).split(batch):
                optimiser.zero_grad()
                drawn = with_chance(features[rows], study.model, order)
                task.losses(local(drawn), labels[rows]).mean().backward()
                optimiser.step()
            for name, tensor in local.state_dict().items():
                mean[name] += tensor * (records.patients / total)
        shared.load_state_dict(mean)
    return model_tensors(shared)


def pooled(
    study: StudySpec,
    training: Tables,
    *,
    steps: int,
    rate: float,
    decay: float,
    start: Tensors | None = None,
    frozen: tuple[str, ...] = (),
) -> dict[str, Array]:
    """Steps of Adam at the coordinator, each on the sum of all sites' full gradients; no noise.

    `start` instead of the study's initial weights; names that begin with one of `frozen` keep it.
    """
    found = pooled_path(
        study, training, marks=(steps,), rate=rate, decay=decay, start=start, frozen=frozen
    )
    return found[steps]


def pooled_path(
    study: StudySpec,
    training: Tables,
    *,
    marks: Sequence[int],
    rate: float,
    decay: float,
    start: Tensors | None = None,
    frozen: tuple[str, ...] = (),
    momentum: float | None = None,
) -> dict[int, dict[str, Array]]:
    """The models after each of these numbers of steps, all on the way of `pooled`.

    With `momentum` the steps are those of gradient descent with it, and not of Adam.
    """
    task, inputs = task_of(study), input_size(study.data)
    model = build_model(study.model, inputs).train()
    if start is not None:
        load_tensors(model, start)
    learned = [one for name, one in model.named_parameters() if not name.startswith(frozen)]
    optimiser: torch.optim.Optimizer = (
        torch.optim.AdamW(learned, lr=rate, weight_decay=decay)
        if momentum is None
        else torch.optim.SGD(learned, lr=rate, weight_decay=decay, momentum=momentum)
    )
    total = sum(records.patients for records in training.values())
    chance = torch.Generator().manual_seed(1)
    # Gradients add up: the sum over all patients is the sum over the sites' sums.
    features = torch.from_numpy(np.concatenate([one.features for one in training.values()]))
    labels = torch.from_numpy(np.concatenate([one.labels for one in training.values()]))
    found = {}
    for step in range(1, max(marks) + 1):
        optimiser.zero_grad()
        drawn = with_chance(features, study.model, chance)
        (task.losses(model(drawn), labels).sum() / total).backward()
        optimiser.step()
        if step in marks:
            found[step] = model_tensors(model)
    return found


def distributed(
    study: StudySpec, training: Tables, *, backend: BackEndName = "bookkeeping"
) -> Tensors:
    """The study's model by steps of the pooled data with distributed noise."""
    dp = study.dp
    if not isinstance(dp, DpSgd):
        raise TypeError("expected a dp-sgd study")
    std = dp.noise_multiplier * dp.clip_norm * study.thresholds.site_noise_factor
    sites = len(study.sites)
    grid = FixedPoint.fitting(clip_norm=dp.clip_norm, sites=sites, noise_std=std)
    grid.check(sites=sites, noise_std=std)
    source = Csprng()
    flags = PerformanceFlags(backend=backend)
    trainers = {
        site: LocalTrainer(study, site, sampling=source, noise=source, flags=flags)
        for site in training
    }
    inputs = input_size(study.data)
    parts = summed(study, model_shapes(study.model, inputs))
    descent, kept = PooledDescent(study.training), released_models(study)
    optimiser = server_optimiser(study)
    model: dict[str, Array] = initial_tensors(study.model, inputs)
    for number in range(study.rounds):
        total: Any = 0
        for site, trainer in trainers.items():
            vector = trainer.integer_sum(model, training[site], grid=grid).vector
            noise = grid.noise(len(vector), std=std, source=source)
            total = total + grid.to_ring(grid.saturate(vector) + noise)
        mean = grid.from_ring(total) / (dp.sampling_probability * study.public_patients)
        gradient, start = {}, 0
        for name, shape in parts:
            size = int(np.prod(shape, dtype=int))
            gradient[name] = mean[start : start + size].reshape(shape)
            start += size
        moved = descent.step(model, gradient, rate=study.learning_rate(number + 1))
        model = optimiser.step(model, moved)
        kept.add(model)
    return kept.mean()


def rehearsed(study: StudySpec, training: Tables, *, seed: int = 1) -> Tensors:
    """As `distributed` for patients of one record, by torch.func in one place: the same steps
    without the sites' checks and grid. For choosing a plan on training patients; no figure is made
    with it.
    """
    dp = study.dp
    if not isinstance(dp, DpSgd):
        raise TypeError("expected a dp-sgd study")
    task, inputs = task_of(study), input_size(study.data)
    network = build_model(study.model, inputs).train()
    as_opacus(network)  # torch.func knows no operation of our own
    features = torch.from_numpy(np.concatenate([one.features for one in training.values()]))
    labels = torch.from_numpy(np.concatenate([one.labels for one in training.values()]))

    def loss(weights: dict[str, torch.Tensor], record: torch.Tensor, label: torch.Tensor) -> Any:
        found = torch.func.functional_call(network, weights, (record[None],))
        return task.losses(found, label[None]).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    chance = np.random.default_rng(seed)
    factor = study.thresholds.site_noise_factor * np.sqrt(len(study.sites))
    std = dp.noise_multiplier * dp.clip_norm * factor
    descent, kept = PooledDescent(study.training), released_models(study)
    model: dict[str, Array] = initial_tensors(study.model, inputs)
    for number in range(study.rounds):
        drawn = torch.from_numpy(chance.random(len(labels)) < dp.sampling_probability)
        weights = {name: torch.from_numpy(array) for name, array in model.items()}
        found = {name: one.flatten(1) for name, one in
                 each(weights, features[drawn], labels[drawn]).items()}  # fmt: skip
        norms = torch.cat(list(found.values()), dim=1).norm(dim=1)
        scale = (dp.clip_norm / norms.clamp(min=dp.clip_norm))[:, None]
        divisor = dp.sampling_probability * study.public_patients
        gradient = {
            name: (
                ((one * scale).sum(dim=0).numpy() + std * chance.normal(size=one.shape[1]))
                / divisor
            ).reshape(model[name].shape).astype(np.float32)
            for name, one in found.items()
        }  # fmt: skip
        model = descent.step(model, gradient, rate=study.learning_rate(number + 1))
        kept.add(model)
    return kept.mean()


def privacy(study: StudySpec) -> dict[str, Any]:
    """What the study's training costs, for the table."""
    dp = study.dp
    if not isinstance(dp, DpSgd):
        raise TypeError("expected a dp-sgd study")
    event = study_event(study)
    return {
        "unit": "per record; NOT per patient" if dp.unit == "record" else "per patient of a site",
        "placement": dp.placement,
        "delta": dp.delta,
        "epsilon_admission": epsilon_admission([event], delta=dp.delta),
        "epsilon_pld": epsilon_pld(event, delta=dp.delta),
        "noise_multiplier": dp.noise_multiplier,
        "steps": dp.steps,
        "sampling_probability": dp.sampling_probability,
    }
