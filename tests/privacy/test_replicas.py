"""Several devices, bfloat16 and passes over parts of a patient: other ways to the same clipped sum,
with the noise added once.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedward_client.training.patient_dp.back_end import Chunk, Precision
from fedward_client.training.patient_dp.choice import Load, choose_back_end
from fedward_client.training.patient_dp.engine import PatientDpEngine
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_client.training.patient_dp.plan import PatientDpPlan, PatientTensors
from fedward_client.training.patient_dp.replicated_backend import ReplicatedBackEnd
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.errors import ConfigError, ModelRefused
from fedward_common.ids import SiteId
from fedward_common.models.registry import initial_tensors
from fedward_common.study.encoding import PatientRecords
from tests.support.naive_dp import FirstInLine, NoNoise, Scripted
from tests.support.studies import make_dp, make_spec

CLIP = 0.5
CPU = torch.device("cpu")


def losses(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(
        outputs.squeeze(-1), labels, reduction="none"
    )


def examples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.linspace(-1, 1, 6 * count).view(count, 6).cos(), (torch.arange(count) % 2).float()


def make_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 1))


def make_patients(sizes: list[int]) -> PatientTensors:
    generator = torch.Generator().manual_seed(1)
    records = sum(sizes)
    return PatientTensors(
        features=torch.randn(records, 6, generator=generator),
        labels=(torch.rand(records, generator=generator) > 0.5).float(),
        starts=np.cumsum([0, *sizes]).astype(np.int64),
    )


def replicated(model: nn.Module, count: int) -> ReplicatedBackEnd:
    return ReplicatedBackEnd(
        model,
        make=lambda replica: LoopBackEnd(replica, loss=losses),
        devices=[CPU] * count,
        examples=examples,
    )


def make_engine(
    model: nn.Module, back_end: object, *, noise: object = None, chunk: int = 7
) -> PatientDpEngine:
    plan = PatientDpPlan(
        noise_multiplier=2.0,
        clip_norm=CLIP,
        sampling_probability=1.0,
        max_records_per_patient=4,
        public_patients=1,
    )
    return PatientDpEngine(
        back_end,  # type: ignore[arg-type]  # either kind of back end
        plan,
        parameters=sum(p.numel() for p in model.parameters()),
        sampling=FirstInLine(),
        noise=noise or NoNoise(),  # type: ignore[arg-type]  # any source
        max_records_per_chunk=chunk,
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("sizes", [[3], [1, 2, 4, 3, 2], [2, 2]])
def test_replicas_give_the_sum_of_one_device(count: int, sizes: list[int]) -> None:
    model = make_model()
    patients = make_patients(sizes)
    expected = make_engine(model, LoopBackEnd(model, loss=losses)).step(patients)

    found = make_engine(model, replicated(model, count), chunk=100).step(patients)

    assert float((found - expected).norm()) <= len(sizes) ** 2 * 2**-52 * CLIP


def test_noise_is_added_once_however_many_replicas_and_chunks_there_are() -> None:
    model = make_model()
    size = sum(p.numel() for p in model.parameters())
    script = np.arange(1.0, size + 1.0)
    patients = make_patients([2] * 6)

    noisy = make_engine(model, replicated(model, 3), noise=Scripted(script), chunk=4)
    plain = make_engine(model, replicated(model, 3), chunk=4)

    difference = (noisy.step(patients) - plain.step(patients)).numpy()
    np.testing.assert_allclose(difference, script * 2.0 * CLIP, rtol=1e-12)


def test_replicas_follow_the_weights_of_the_model_they_copy() -> None:
    model = make_model()
    back_end = replicated(model, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    patients = make_patients([2, 3, 1])

    found = make_engine(model, back_end).step(patients)

    expected = make_engine(model, LoopBackEnd(model, loss=losses)).step(patients)
    assert float((found - expected).norm()) <= 1e-14


def test_a_device_that_rounds_otherwise_is_refused() -> None:
    made = []

    class OneUlp(LoopBackEnd):
        def patient_gradients(self, chunk: Chunk) -> Iterator[torch.Tensor]:
            for block in super().patient_gradients(chunk):
                yield block * (1 + 2**-23)

    def make(replica: nn.Module) -> LoopBackEnd:
        made.append(replica)
        return (LoopBackEnd if len(made) == 1 else OneUlp)(replica, loss=losses)

    with pytest.raises(ModelRefused, match="the same bits of a patient's gradient on every device"):
        ReplicatedBackEnd(make_model(), make=make, devices=[CPU, CPU], examples=examples)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_in_bfloat16_a_patient_moves_the_sum_by_at_most_c(scale: float) -> None:
    """Clipped in bfloat16 itself, the norm of a patient was 1.0055 C."""
    model = make_model()
    alone = make_patients([4])
    patient = PatientTensors(
        features=scale * alone.features, labels=alone.labels, starts=alone.starts
    )

    moved = make_engine(model, LoopBackEnd(model, loss=losses, precision="bfloat16")).step(patient)

    assert 0 < float(moved.norm()) <= CLIP * (1 + 1e-12)


def test_bfloat16_is_near_float32_and_keeps_float32_gradients() -> None:
    model = make_model()
    patients = make_patients([2, 3, 1])
    expected = make_engine(model, LoopBackEnd(model, loss=losses)).step(patients)

    made = LoopBackEnd(model, loss=losses, precision="bfloat16")
    found = make_engine(model, made).step(patients)

    difference = float((found - expected).norm()) / float(expected.norm())
    assert 1e-6 < difference < 5e-2
    chunk = Chunk(features=patients.features, labels=patients.labels, sizes=torch.tensor([2, 3, 1]))
    assert {rows.dtype for rows in made.patient_gradients(chunk)} == {torch.float32}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_in_bfloat16_on_cuda_a_patient_moves_the_sum_by_at_most_c(scale: float) -> None:
    model = make_model().cuda()
    alone = make_patients([4])
    patient = PatientTensors(
        features=scale * alone.features.cuda(), labels=alone.labels.cuda(), starts=alone.starts
    )
    back_end = LoopBackEnd(model, loss=losses, precision="bfloat16", most_records=3)

    moved = make_engine(model, back_end).step(patient)

    assert 0 < float(moved.norm()) <= CLIP * (1 + 1e-12)
    assert moved.dtype == torch.float64


@pytest.mark.parametrize(
    ("replicas", "precision"), [(1, "float32"), (2, "float32"), (1, "bfloat16")]
)
@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_patient_who_does_not_fit_is_added_up_from_passes_and_clipped_whole(
    most: int, replicas: int, precision: Precision
) -> None:
    """Gradient accumulation: clipping each pass by itself would let one patient move several C."""
    model, seen = make_model(), []
    model.register_forward_hook(lambda _layer, inputs, _out: seen.append(len(inputs[0])))
    patients = make_patients([4, 1, 4])
    whole = LoopBackEnd(make_model(), loss=losses)
    expected = make_engine(make_model(), whole).step(patients)
    back_end = choose_back_end(
        "loop",
        model,
        loss=losses,
        examples=examples,
        load=Load(most_records=4, max_records_per_chunk=most),
        precision=precision,
        replicas=replicas,
    )
    seen.clear()

    found = make_engine(model, back_end, chunk=most).step(patients)

    if precision == "float32":
        assert float((found - expected).norm()) <= 1e-6 * float(expected.norm())
    assert max(seen) == most
    alone = make_engine(model, back_end, chunk=most).step(make_patients([4]))
    assert 0 < float(alone.norm()) <= CLIP * (1 + 1e-12)


@pytest.mark.parametrize("most", [None, 2])
def test_in_passes_a_patient_s_gradient_has_the_same_bits_whoever_else_is_drawn(
    most: int | None,
) -> None:
    back_end = LoopBackEnd(make_model(), loss=losses, most_records=most)
    everybody = make_patients([2, 3, 4])

    def row(number: int, *, start: int, sizes: list[int]) -> torch.Tensor:
        records = slice(start, start + sum(sizes))
        chunk = Chunk(
            features=everybody.features[records],
            labels=everybody.labels[records],
            sizes=torch.tensor(sizes),
        )
        return torch.cat(list(back_end.patient_gradients(chunk)))[number]

    among_all = row(1, start=0, sizes=[2, 3, 4])

    assert torch.equal(among_all, row(0, start=2, sizes=[3, 4]))
    assert torch.equal(among_all, row(0, start=2, sizes=[3]))


@pytest.mark.parametrize("flags", [{"replicas": 2}, {"precision": "bfloat16"}])
@pytest.mark.parametrize("backend", ["bookkeeping", "opacus"])
def test_another_back_end_than_loop_is_refused_with_them(
    flags: dict[str, object], backend: str
) -> None:
    with pytest.raises(ConfigError, match="expected 'loop' or 'auto'"):
        choose_back_end(
            backend,  # type: ignore[arg-type]  # both are names of back ends
            make_model(),
            loss=losses,
            examples=examples,
            load=Load(most_records=2, max_records_per_chunk=16),
            **flags,  # type: ignore[arg-type]  # as above
        )


@pytest.mark.parametrize("flags", [{"replicas": 2}, {"precision": "bfloat16"}])
def test_a_trainer_runs_a_round_with_them(flags: dict[str, object]) -> None:
    study = make_spec(
        model={"name": "mlp", "hidden": [4]}, dp=make_dp(sampling_probability=1.0, steps=1),
        rounds=1, local_steps=1,
    )  # fmt: skip
    inputs = study.data.input_size
    start = initial_tensors(study.model, inputs)
    records = PatientRecords(
        features=np.linspace(-1, 1, 4 * inputs, dtype=np.float32).reshape(4, inputs),
        labels=np.array([0, 1, 0, 1], np.float32),
        patient=np.arange(4),
    )

    def update(chosen: PerformanceFlags) -> np.ndarray:
        trainer = LocalTrainer(
            study,
            SiteId(study.sites[0].id),
            sampling=FirstInLine(),
            noise=NoNoise(),
            flags=chosen,
        )
        tensors = trainer.train(start, records).tensors
        return np.concatenate([(tensors[name] - start[name]).ravel() for name in sorted(start)])

    expected = update(PerformanceFlags())
    found = update(PerformanceFlags(**flags))  # type: ignore[arg-type]  # as above

    assert np.linalg.norm(expected) > 0
    assert np.linalg.norm(found - expected) <= 5e-2 * np.linalg.norm(expected)
