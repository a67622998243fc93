"""The guarantees of patient-level DP-SGD, on every model and every back end.

The list is the project's own (design paper "privacy", 2.4); each test states one line of it.
"""

import ast
import inspect
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import fedward_client.training
from fedward_client.tasks.task import LossFunction
from fedward_client.training.patient_dp.back_end import BackEnd
from fedward_client.training.patient_dp.bookkeeping_backend import (
    BookkeepingBackEnd,
    Geometry,
)
from fedward_client.training.patient_dp.engine import PatientDpEngine
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_client.training.patient_dp.opacus_backend import OpacusBackEnd
from fedward_client.training.patient_dp.plan import PatientDpPlan, PatientTensors
from fedward_common.errors import ModelRefused
from fedward_common.models.dp_layers import dp_layer
from fedward_common.models.registry import build_model
from fedward_common.privacy import randomness
from fedward_common.privacy.randomness import Csprng, RandomSource
from fedward_common.study.spec import ModelSpec
from tests.support import naive_dp
from tests.support.naive_dp import FirstInLine, NoNoise, Repeatable, Scripted

CLIP = 0.5
INPUTS = 6
SCALES = [1e-3, 1.0, 1e4]


def bookkeeping(model: nn.Module, *, loss: LossFunction) -> BookkeepingBackEnd:
    return BookkeepingBackEnd(model, loss=loss, geometry=Geometry(slots=3, records=8))


BACK_ENDS: dict[str, Callable[..., BackEnd]] = {
    "opacus": OpacusBackEnd,
    "loop": LoopBackEnd,
    "loop in passes": partial(LoopBackEnd, most_records=2),
    "bookkeeping": bookkeeping,
}
Patient = tuple[torch.Tensor, torch.Tensor]


class SmallCnn(nn.Module):
    """Convolutions with groups and GroupNorm on images of 1 x 6 x 6."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.Flatten(),
            nn.Linear(64, 1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images).squeeze(-1)


class SmallLstm(nn.Module):
    """An LSTM over 5 time steps of 3 measurements; the last state gives the logit."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = dp_layer("lstm")(3, 4, batch_first=True)
        self.output = nn.Linear(4, 1)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(series)
        return self.output(states[:, -1]).squeeze(-1)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "logistic-regression": (
        lambda: build_model(ModelSpec(name="logistic-regression"), INPUTS),
        (INPUTS,),
    ),
    "mlp": (lambda: build_model(ModelSpec(name="mlp", hidden=(7, 5)), INPUTS), (INPUTS,)),
    "cnn": (SmallCnn, (1, 6, 6)),
    "lstm": (SmallLstm, (5, 3)),
}


def binary_cross_entropy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none")


def make_model(name: str) -> nn.Module:
    """The model with weights away from zero, equal on every call."""
    model = MODELS[name][0]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + 0.1)
    return model.train()


def make_patients(
    name: str, *, sizes: list[int], scale: float = 1.0, seed: int = 0
) -> list[Patient]:
    """Patients with that many records, all different, features around `scale`."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            scale * torch.randn((size, *MODELS[name][1]), generator=generator),
            (torch.rand(size, generator=generator) > 0.5).float(),
        )
        for size in sizes
    ]


def tensors(patients: list[Patient]) -> PatientTensors:
    return PatientTensors(
        features=torch.cat([features for features, _ in patients]),
        labels=torch.cat([labels for _, labels in patients]),
        starts=np.cumsum([0, *(len(labels) for _, labels in patients)]).astype(np.int64),
    )


def make_engine(
    back_end: BackEnd,
    model: nn.Module,
    *,
    sampling: RandomSource | None = None,
    noise: RandomSource | None = None,
    chunk: int = 16,
    clip_norm: float = CLIP,
    **plan: float,
) -> PatientDpEngine:
    """An engine that takes everybody, all records, and adds no noise unless told otherwise."""
    values = {"noise_multiplier": 1.0, "sampling_probability": 1.0}
    values |= {"max_records_per_patient": 100, "public_patients": 1} | plan
    return PatientDpEngine(
        back_end,
        PatientDpPlan(clip_norm=clip_norm, **values),
        parameters=sum(p.numel() for p in model.parameters()),
        sampling=sampling or FirstInLine(),
        noise=noise or NoNoise(),
        max_records_per_chunk=chunk,
    )


def clipped_sum(
    back_end: str, name: str, patients: list[Patient], *, chunk: int = 16, clip_norm: float = CLIP
) -> torch.Tensor:
    """What one step without noise returns, at a denominator of 1."""
    model = make_model(name)
    made = BACK_ENDS[back_end](model, loss=binary_cross_entropy)
    engine = make_engine(made, model, chunk=chunk, clip_norm=clip_norm)
    return engine.step(tensors(patients))


def reference_sum(name: str, patients: list[Patient], *, clip_norm: float = CLIP) -> torch.Tensor:
    """The naive sum: numpy for tables, one float64 autograd pass per record for the others."""
    model = make_model(name).double()
    weights = {key: p.detach().numpy() for key, p in model.named_parameters()}
    if name in ("logistic-regression", "mlp"):
        arrays = [(x.double().numpy(), y.double().numpy()) for x, y in patients]
        total = naive_dp.clipped_sum(weights, arrays, clip_norm=clip_norm)
        return torch.cat([torch.from_numpy(total[key]).flatten() for key in weights])
    result = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    for features, labels in patients:
        mean = torch.zeros_like(result)
        for row, label in zip(features.double(), labels.double(), strict=True):
            loss = binary_cross_entropy(model(row[None]), label[None])[0]
            parts = torch.autograd.grad(loss, list(model.parameters()))
            mean += torch.cat([part.flatten() for part in parts]) / len(labels)
        result += mean * min(1.0, clip_norm / float(mean.norm()))
    return result


every_back_end = pytest.mark.parametrize("back_end", list(BACK_ENDS))
every_model = pytest.mark.parametrize("name", list(MODELS))


@every_back_end
@every_model
@pytest.mark.parametrize("clip_norm", [0.05, 0.5, 100.0])
def test_the_sum_equals_the_naive_one_to_1e_6(back_end: str, name: str, clip_norm: float) -> None:
    patients = make_patients(name, sizes=[3, 8, 4, 5, 3])

    found = clipped_sum(back_end, name, patients, clip_norm=clip_norm)

    expected = reference_sum(name, patients, clip_norm=clip_norm)
    assert float((found - expected).norm()) <= 1e-6 * float(expected.norm())


@every_back_end
@every_model
@pytest.mark.parametrize("scale", SCALES)
def test_one_patient_less_moves_the_sum_by_at_most_c(
    back_end: str, name: str, scale: float
) -> None:
    patients = make_patients(name, sizes=[1, 2, 3, 8], scale=scale)
    everybody = clipped_sum(back_end, name, patients)

    moved = [
        float((everybody - clipped_sum(back_end, name, patients[:i] + patients[i + 1 :])).norm())
        for i in range(len(patients))
    ]

    assert max(moved) <= 1.0005 * CLIP
    assert max(moved) > 0


@every_back_end
@every_model
@pytest.mark.parametrize("scale", SCALES)
def test_another_patient_in_the_place_moves_the_sum_by_at_most_2c(
    back_end: str, name: str, scale: float
) -> None:
    patients = make_patients(name, sizes=[4, 1, 6], scale=scale)
    others = [(-features, 1 - labels) for features, labels in patients]
    before = clipped_sum(back_end, name, patients)

    moved = [
        float(
            (
                before - clipped_sum(back_end, name, [*patients[:i], other, *patients[i + 1 :]])
            ).norm()
        )
        for i, other in enumerate(others)
    ]

    assert max(moved) <= 2.0005 * CLIP


@every_back_end
@every_model
def test_the_size_of_chunks_changes_nothing_but_rounding(back_end: str, name: str) -> None:
    """At chunks of 1 record, a patient split in two would be clipped twice."""
    patients = make_patients(name, sizes=[3, 1, 8, 2, 5, 1])

    sums = [clipped_sum(back_end, name, patients, chunk=chunk) for chunk in (1, 4, 7, 1000)]

    assert max(float((one - sums[0]).abs().max()) for one in sums) <= 1e-6


@every_back_end
@every_model
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_patient_with_a_non_finite_gradient_counts_as_absent(
    back_end: str, name: str, value: float
) -> None:
    patients = make_patients(name, sizes=[3, 4, 2])
    broken = patients[1][0].clone()
    broken[2] = value

    found = clipped_sum(back_end, name, [patients[0], (broken, patients[1][1]), patients[2]])

    gone = clipped_sum(back_end, name, [patients[0], patients[2]])
    assert bool(torch.isfinite(found).all())
    if value != 3e38:  # a huge but finite number may have a finite gradient, which is clipped
        assert float((found - gone).abs().max()) <= 1e-7
    assert float((found - gone).norm()) <= 1.0005 * CLIP


@every_back_end
@every_model
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
def test_records_that_nearly_cancel_do_not_hide_from_the_clip(
    back_end: str, name: str, scale: float
) -> None:
    features, _ = make_patients(name, sizes=[1], scale=scale)[0]
    attacker = (torch.cat([features, -features, features * 1.001]), torch.tensor([1.0, 1.0, 0.0]))
    patients = make_patients(name, sizes=[3, 3])

    moved = clipped_sum(back_end, name, [*patients, attacker]) - clipped_sum(
        back_end, name, patients
    )

    assert float(moved.norm()) <= 1.0005 * CLIP


@every_back_end
def test_opposite_tokens_of_one_record_do_not_hide_from_the_clip(back_end: str) -> None:
    """Ghost clipping in float32 computed a norm of 0 here and let 1000 C through."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.linear(tokens).sum(dim=(1, 2))

    model = Tokens()
    token = torch.tensor([1e4, 2e4, -1e4])
    features = torch.stack([token, -token + 0.01]).expand(2, 2, 3)
    patients = tensors([(features, torch.tensor([0.0, 1.0]))])
    made = BACK_ENDS[back_end](model, loss=binary_cross_entropy)

    moved = make_engine(made, model).step(patients)

    assert float(moved.norm()) <= 1.0005 * CLIP


@every_back_end
@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, labels: binary_cross_entropy(outputs, labels).mean(),
        lambda outputs, labels: binary_cross_entropy(outputs, labels).unsqueeze(1),
        lambda outputs, labels: (outputs.unsqueeze(1) - labels.unsqueeze(0)).square(),
        lambda outputs, labels: binary_cross_entropy(outputs, labels)[:-1],
    ],
    ids=["scalar", "records-by-1", "records-by-records", "one-short"],
)
def test_a_loss_of_another_shape_is_refused(
    back_end: str, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> None:
    model = make_model("mlp")
    engine = make_engine(BACK_ENDS[back_end](model, loss=loss), model)

    with pytest.raises(ModelRefused, match="loss: expected one number for each record"):
        engine.step(tensors(make_patients("mlp", sizes=[3, 3])))


@every_back_end
def test_an_empty_draw_adds_noise_of_the_right_size(back_end: str) -> None:
    model = build_model(ModelSpec(name="logistic-regression"), 999)
    made = BACK_ENDS[back_end](model, loss=binary_cross_entropy)
    nobody = Scripted(*([[0.99, 0.98], []] * 40))
    engine = make_engine(
        made, model, sampling=nobody, noise=Csprng(), sampling_probability=0.1,
        noise_multiplier=3.0, public_patients=20,
    )  # fmt: skip
    patients = tensors([(torch.ones(1, 999), torch.ones(1)), (torch.ones(1, 999), torch.ones(1))])

    noise = torch.stack([engine.step(patients) for _ in range(40)])

    expected = 3.0 * CLIP / (0.1 * 20)  # sigma C / (q N)
    assert abs(float(noise.std()) / expected - 1) < 0.02  # 40,000 numbers: 5.7 standard errors
    assert abs(float(noise.mean())) < 6 * expected / np.sqrt(noise.numel())
    assert engine.steps == 40


def test_noise_is_added_once_however_many_chunks_there_are() -> None:
    model = make_model("mlp")
    made = LoopBackEnd(model, loss=binary_cross_entropy)
    patients = tensors(make_patients("mlp", sizes=[2] * 6))
    script = np.arange(1.0, 1 + sum(p.numel() for p in model.parameters()))

    noisy = make_engine(made, model, chunk=1, noise=Scripted(script), noise_multiplier=4.0)
    plain = make_engine(made, model, chunk=1)

    difference = (noisy.step(patients) - plain.step(patients)).numpy()
    np.testing.assert_allclose(difference, script * 4.0 * CLIP, rtol=1e-12)


@every_back_end
def test_a_step_into_the_memory_of_the_last_one_has_the_bits_of_a_fresh_one(back_end: str) -> None:
    model = make_model("mlp")
    made = BACK_ENDS[back_end](model, loss=binary_cross_entropy)
    patients = tensors(make_patients("mlp", sizes=[3, 1, 2]))
    fresh = make_engine(made, model).step(patients)
    for left in (float("nan"), float("inf"), 7.0):
        used = torch.full_like(fresh, left)

        found = make_engine(made, model).step(patients, into=used)

        assert found is used
        assert torch.equal(found, fresh)


@pytest.mark.parametrize(
    "into",
    [torch.zeros(3, dtype=torch.float64), torch.zeros(3), torch.zeros(1, 3, dtype=torch.float64)],
)
def test_memory_of_another_kind_is_refused(into: torch.Tensor) -> None:
    model = build_model(ModelSpec(name="logistic-regression"), 3)
    engine = make_engine(LoopBackEnd(model, loss=binary_cross_entropy), model)

    with pytest.raises(RuntimeError, match="what an earlier step returned"):
        engine.step(tensors([(torch.ones(1, 3), torch.ones(1))]), into=into)
    assert engine.steps == 0


@every_back_end
@pytest.mark.parametrize("stage", ["forward", "backward"])
def test_an_interrupted_step_leaves_nothing_for_the_next(back_end: str, stage: str) -> None:
    """A deadline in mid-step merged one patient into two steps in Opacus' batch manager."""

    class Deadline(BaseException):
        pass

    class Interrupts(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: object, *gradients: torch.Tensor) -> torch.Tensor:
            raise Deadline

    class Stopper(nn.Module):
        """Lets the gradient reach the output layer and not the hidden ones."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            hidden = self.inner.hidden(features)
            if armed and stage == "backward":
                hidden = Interrupts.apply(hidden)
            return self.inner.output(hidden).squeeze(-1)

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if armed and stage == "forward" and len(calls) == 3:
            raise Deadline
        return binary_cross_entropy(outputs, labels)

    calls: list[int] = []
    armed = True
    model = Stopper(make_model("mlp"))
    patients = tensors(make_patients("mlp", sizes=[3] * 5))
    engine = make_engine(BACK_ENDS[back_end](model, loss=loss), model, chunk=3)
    with pytest.raises(Deadline):
        engine.step(patients)
    armed = False

    after = engine.step(patients)

    fresh = clipped_sum(back_end, "mlp", make_patients("mlp", sizes=[3] * 5), chunk=3)
    assert torch.equal(after, fresh)
    assert engine.steps == 1


def test_at_most_k_records_of_a_patient_take_part() -> None:
    """The naive sum over the k records with the smallest keys is the engine's."""
    patients = make_patients("mlp", sizes=[5, 2, 3])
    keys = [0.9, 0.1, 0.5, 0.2, 0.3, 0.8, 0.7, 0.6, 0.1, 0.4]
    model = make_model("mlp")
    made = OpacusBackEnd(model, loss=binary_cross_entropy)
    source = Scripted([0.0, 0.5, 0.9], keys)

    found = make_engine(made, model, sampling=source, max_records_per_patient=2).step(
        tensors(patients)
    )

    kept = [[1, 3], [0, 1], [1, 2]]
    few = [(x[rows], y[rows]) for (x, y), rows in zip(patients, kept, strict=True)]
    assert float((found - reference_sum("mlp", few)).abs().max()) <= 1e-6


def test_the_denominator_is_the_public_constant_and_not_the_draw() -> None:
    patients = make_patients("mlp", sizes=[3, 3, 3])
    model = make_model("mlp")
    made = LoopBackEnd(model, loss=binary_cross_entropy)
    source = Scripted([0.1, 0.9, 0.3], [0.0] * 6)

    found = make_engine(
        made, model, sampling=source, sampling_probability=0.4, public_patients=50
    ).step(tensors(patients))

    drawn = reference_sum("mlp", [patients[0], patients[2]])
    assert float((found * (0.4 * 50) - drawn).abs().max()) <= 1e-6


def test_a_site_without_patients_releases_noise_only() -> None:
    model = make_model("mlp")
    made = LoopBackEnd(model, loss=binary_cross_entropy)
    nobody = PatientTensors(
        features=torch.zeros(0, INPUTS), labels=torch.zeros(0), starts=np.zeros(1, dtype=np.int64)
    )

    found = make_engine(made, model, noise=Repeatable(0)).step(nobody)

    assert float(found.std()) > 0.3 * CLIP


@every_back_end
def test_no_seed_and_no_environment_variable_makes_two_steps_equal(
    back_end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patients = tensors(make_patients("mlp", sizes=[3] * 8))

    def seeded_step() -> torch.Tensor:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        for name in ("PYTHONHASHSEED", "FEDWARD_SEED", "FEDWARD_TEST", "SEED", "PL_GLOBAL_SEED"):
            monkeypatch.setenv(name, "0")
        model = make_model("mlp")
        made = BACK_ENDS[back_end](model, loss=binary_cross_entropy)
        return make_engine(
            made, model, sampling=Csprng(), noise=Csprng(), sampling_probability=0.5
        ).step(patients)

    first, second = seeded_step(), seeded_step()

    assert not bool(torch.isclose(first, second, atol=1e-9).any())


def test_shipped_training_code_reads_no_environment_and_seeds_nothing() -> None:
    """Every module between the sources of randomness and the update is searched."""
    folder = Path(inspect.getfile(fedward_client.training)).parent
    forbidden = {"environ", "getenv", "manual_seed", "seed", "set_rng_state", "default_rng"}
    for path in [*folder.rglob("*.py"), Path(inspect.getfile(randomness))]:
        tree = ast.parse(path.read_text())

        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}

        assert not names & forbidden, path.name


def test_a_forked_worker_draws_other_numbers_than_its_parent() -> None:
    source = Csprng()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, source.normal(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)

    from_child = np.frombuffer(os.read(read_end, 32))

    assert not np.isclose(from_child, source.normal(4)).any()
