"""The utility levers of a plan: each does what its source says and none loosens the guarantee."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedward_client.tasks.registry import task_of
from fedward_client.training.descent import LocalDescent, freeze
from fedward_client.training.patient_dp.engine import PatientDpEngine
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_client.training.patient_dp.plan import PatientDpPlan, PatientTensors
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.models.registry import initial_tensors
from fedward_common.privacy.clipping import normalise_l2
from fedward_common.secagg.sums import summed
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.spec import TrainingSpec
from tests.support.naive_dp import FirstInLine, NoNoise, Repeatable, Scripted
from tests.support.studies import SITES, make_dp, make_spec

CLIP = 0.5
SITE = SiteId(SITES[0])


def losses(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (outputs.squeeze(-1) - labels) ** 2


class NoisyCopies(FirstInLine):
    """Everybody is drawn, and the copies of a record are set apart repeatably."""

    def normal(self, count: int) -> np.ndarray:
        return Repeatable(count).normal(count)


def make_engine(model: nn.Module, **changes: Any) -> PatientDpEngine:
    plan = {"noise_multiplier": 1.0, "clip_norm": CLIP, "sampling_probability": 1.0}
    plan |= {"max_records_per_patient": 4, "public_patients": 1}
    return PatientDpEngine(
        LoopBackEnd(model, loss=losses),
        PatientDpPlan(**(plan | changes)),
        parameters=sum(p.numel() for p in model.parameters()),
        sampling=NoisyCopies(),
        noise=NoNoise(),
        max_records_per_chunk=3,
    )


def make_patients(count: int, *, scale: float = 3.0) -> PatientTensors:
    generator = np.random.default_rng(4)
    sizes = [1 + number % 3 for number in range(count)]
    return PatientTensors(
        features=torch.from_numpy(scale * generator.standard_normal((sum(sizes), 3))).float(),
        labels=torch.from_numpy(generator.standard_normal(sum(sizes))).float(),
        starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
    )


def test_auto_s_scales_every_row_towards_c_and_never_beyond() -> None:
    rows = torch.tensor([[30.0, 40.0], [0.0003, 0.0004], [0.0, 0.0], [float("nan"), 1.0]])

    scaled = normalise_l2(rows, clip_norm=CLIP)

    norms = scaled.norm(dim=1)
    assert norms[0] == pytest.approx(CLIP * 50 / 50.01)
    assert norms[1] == pytest.approx(CLIP * 0.0005 / 0.0105, rel=1e-5)
    assert norms[2] == norms[3] == 0.0
    assert bool((norms < CLIP).all())


@pytest.mark.parametrize(
    "changes",
    [{"clipping": "auto-s"}, {"copies": 3, "jitter": 0.2}, {"clipping": "auto-s", "copies": 2}],
)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_one_patient_alone_moves_a_step_by_at_most_c(changes: dict[str, Any], scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    moved = make_engine(model, **changes).step(make_patients(1, scale=scale))

    assert 0 < float(moved.norm()) <= CLIP * (1 + 1e-12)


def test_copies_go_into_the_patients_own_mean() -> None:
    """Without jitter, copies change nothing: they are in the mean, not in the sum."""
    model = nn.Linear(3, 1)
    patients = make_patients(5)

    plain = make_engine(model).step(patients)
    copied = make_engine(model, copies=4).step(patients)
    jittered = make_engine(model, copies=4, jitter=0.5).step(patients)

    torch.testing.assert_close(copied, plain, rtol=1e-5, atol=1e-7)
    assert float((jittered - plain).abs().max()) > 1e-3


def test_a_shift_moves_every_image_by_itself_and_repeats_its_edge() -> None:
    """A shift of (-1 .. 1) pixels each way by the uniforms 0, 0.5 and 1 - 1e-9."""
    image = torch.arange(6.0).reshape(2, 3)
    patients = PatientTensors(
        features=torch.stack([image.flatten(), 10 + image.flatten()]),
        labels=torch.zeros(2),
        starts=np.array([0, 1, 2]),
    )
    seen: list[torch.Tensor] = []

    class Remembers(nn.Linear):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            seen.append(features)
            return super().forward(features)

    model = Remembers(6, 1)
    plan = PatientDpPlan(
        noise_multiplier=1.0,
        clip_norm=CLIP,
        sampling_probability=1.0,
        max_records_per_patient=1,
        public_patients=1,
        shift=1,
        image=(2, 3),
    )
    draws = Scripted([0.0, 0.0], [0.0, 0.5], [0.0, 0.5, 0.5, 1 - 1e-9])
    engine = PatientDpEngine(
        LoopBackEnd(model, loss=losses),
        plan,
        parameters=7,
        sampling=draws,
        noise=NoNoise(),
        max_records_per_chunk=4,
    )

    engine.step(patients)

    assert seen[0].view(2, 3).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert seen[1].view(2, 3).tolist() == [[11, 12, 12], [14, 15, 15]]


def test_a_shift_of_what_is_no_image_is_refused() -> None:
    study = make_spec(
        training={"learning_rate": 0.5, "jitter": {"copies": 2, "scale": 0.0, "shift": 1}}
    )

    with pytest.raises(ConfigError, match="expected flat images with it, found tabular"):
        LocalTrainer(
            study, SITE, sampling=Repeatable(1), noise=Repeatable(2), flags=PerformanceFlags()
        )


def test_adam_takes_its_textbook_first_step() -> None:
    study = make_spec(training={"learning_rate": 0.1, "optimizer": "adam"})
    parameter = nn.Parameter(torch.zeros(3))

    LocalDescent(study, [parameter]).step(torch.tensor([2.0, -0.5, 0.0], dtype=torch.float64))

    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.1, 0.1, 0.0]))


def test_frozen_parameters_keep_their_values_and_the_others_move() -> None:
    study = make_spec(
        model={"name": "mlp", "hidden": [8]},
        dp=make_dp(),
        training={"learning_rate": 0.5, "frozen": ["hidden."]},
    )
    inputs = task_of(study).inputs
    start = initial_tensors(study.model, inputs)
    records = PatientRecords(
        features=np.ones((3, inputs), np.float32),
        labels=np.ones(3, np.float32),
        patient=np.arange(3),
    )
    trainer = LocalTrainer(
        study, SITE, sampling=Repeatable(1), noise=Repeatable(2), flags=PerformanceFlags()
    )

    after = trainer.train(start, records).tensors

    moved = {name for name in start if not np.array_equal(start[name], after[name])}
    assert moved == {"output.weight", "output.bias"}


def test_the_base_of_an_adapter_keeps_its_bits_and_no_sum_contains_it() -> None:
    study = make_spec(
        model={"name": "mlp", "hidden": [8], "lora": {"rank": 1, "layers": ["hidden."]}},
        training={"learning_rate": 0.5, "frozen": ["hidden.1."]},
    )
    inputs = task_of(study).inputs
    start = initial_tensors(study.model, inputs)
    records = PatientRecords(
        features=np.ones((3, inputs), np.float32),
        labels=np.ones(3, np.float32),
        patient=np.arange(3),
    )
    trainer = LocalTrainer(
        study, SITE, sampling=Repeatable(1), noise=Repeatable(2), flags=PerformanceFlags()
    )

    after = trainer.train(start, records).tensors

    moved = {name for name in start if not np.array_equal(start[name], after[name])}
    assert moved == {"hidden.0.down.weight", "hidden.0.up.weight", "output.weight", "output.bias"}
    assert {name for name, _ in summed(study, {n: a.shape for n, a in start.items()})} == moved


def test_a_prefix_that_no_parameter_has_is_an_error_that_names_them() -> None:
    with pytest.raises(ConfigError, match="found 'encoder'; the model has weight, bias"):
        freeze(nn.Linear(2, 1), TrainingSpec(learning_rate=0.1, frozen=("encoder",)))
    with pytest.raises(ConfigError, match="something left to train"):
        freeze(nn.Linear(2, 1), TrainingSpec(learning_rate=0.1, frozen=("weight", "bias")))


def test_levers_that_are_off_leave_the_digest_of_a_study_as_it_was() -> None:
    plain = make_spec()
    spelt_out = make_spec(
        training={**plain.training.model_dump(), "optimizer": "sgd", "frozen": []},
        aggregation={"name": "fedavg", "ema": 0.0},
        model={**plain.model.model_dump(), "lora": None, "weight_standardisation": False},
    )

    assert b"optimizer" not in plain.canonical
    assert b"clipping" not in plain.canonical
    assert b"lora" not in plain.canonical
    assert b"standardisation" not in plain.canonical
    assert plain.aggregation.name != "fedavg" or spelt_out.digest == plain.digest


def test_momentum_beside_adam_is_refused() -> None:
    with pytest.raises(ValueError, match="momentum: expected none"):
        TrainingSpec(learning_rate=0.1, optimizer="adam", momentum=0.9)
