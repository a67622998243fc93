"""Properties of patient-level DP-SGD over generated patients, on every back end."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedward_client.tasks.tabular_classification import TabularClassificationTask
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
from fedward_client.training.patient_dp.sampling import Draw, chunks, draw_records
from fedward_common.models.registry import build_model
from fedward_common.privacy.clipping import clip_l2
from fedward_common.study.spec import ModelSpec
from tests.support import naive_dp
from tests.support.naive_dp import FirstInLine, NoNoise, Repeatable

INPUTS = 4
MODELS = {
    "logistic-regression": ModelSpec(name="logistic-regression"),
    "mlp": ModelSpec(name="mlp", hidden=(5,), initial_seed=3),
}
Patient = tuple[torch.Tensor, torch.Tensor]

cohorts = st.builds(
    lambda sizes, scale, seed: _patients(sizes, scale=10.0**scale, seed=seed),
    st.lists(st.integers(1, 8), min_size=2, max_size=6),
    st.floats(-3, 4),
    st.integers(0, 2**32 - 1),
)
clip_norms = st.floats(1e-3, 1e3)
few = settings(max_examples=30, deadline=None, derandomize=True)


def bookkeeping(model: nn.Module, *, loss: LossFunction) -> BookkeepingBackEnd:
    return BookkeepingBackEnd(model, loss=loss, geometry=Geometry(slots=3, records=8))


BACK_ENDS: list[Callable[..., BackEnd]] = [OpacusBackEnd, LoopBackEnd, bookkeeping]
every_back_end = pytest.mark.parametrize("back_end", BACK_ENDS)
both_models = pytest.mark.parametrize("name", list(MODELS))


def _patients(sizes: list[int], *, scale: float, seed: int) -> list[Patient]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            scale * torch.randn(size, INPUTS, generator=generator),
            (torch.rand(size, generator=generator) > 0.5).float(),
        )
        for size in sizes
    ]


def _sum(
    back_end: Callable[..., BackEnd], name: str, patients: list[Patient], **how: float
) -> torch.Tensor:
    model = build_model(MODELS[name], INPUTS)
    task = TabularClassificationTask(inputs=INPUTS)
    engine = PatientDpEngine(
        back_end(model, loss=task.losses),
        PatientDpPlan(
            noise_multiplier=1.0,
            clip_norm=how["clip_norm"],
            sampling_probability=1.0,
            max_records_per_patient=8,
            public_patients=1,
        ),
        parameters=sum(p.numel() for p in model.parameters()),
        sampling=FirstInLine(),
        noise=NoNoise(),
        max_records_per_chunk=int(how.get("chunk", 10)),
    )
    return engine.step(
        PatientTensors(
            features=torch.cat([features for features, _ in patients]),
            labels=torch.cat([labels for _, labels in patients]),
            starts=np.cumsum([0, *(len(labels) for _, labels in patients)]).astype(np.int64),
        )
    )


@every_back_end
@both_models
@few
@given(patients=cohorts, clip_norm=clip_norms, data=st.data())
def test_removing_and_replacing_any_patient_stays_within_c_and_2c(
    back_end: Callable[..., BackEnd],
    name: str,
    patients: list[Patient],
    clip_norm: float,
    data: st.DataObject,
) -> None:
    who = data.draw(st.integers(0, len(patients) - 1))
    before = _sum(back_end, name, patients, clip_norm=clip_norm)
    rest = patients[:who] + patients[who + 1 :]
    flipped = (-patients[who][0], 1 - patients[who][1])

    removed = before - _sum(back_end, name, rest, clip_norm=clip_norm)
    replaced = before - _sum(
        back_end, name, [*patients[:who], flipped, *patients[who + 1 :]], clip_norm=clip_norm
    )

    # 1e-6 of the other patients' weight is float32 rounding that depends on the batch.
    slack = 1e-6 * clip_norm * len(patients)
    assert float(removed.norm()) <= 1.0005 * clip_norm + slack
    assert float(replaced.norm()) <= 2.0005 * clip_norm + slack


@both_models
@few
@given(patients=cohorts, clip_norm=clip_norms, chunk=st.integers(1, 50))
def test_every_back_end_equals_the_naive_sum_at_any_chunk_size(
    name: str, patients: list[Patient], clip_norm: float, chunk: int
) -> None:
    weights = {
        key: p.detach().double().numpy()
        for key, p in build_model(MODELS[name], INPUTS).named_parameters()
    }
    arrays = [(x.double().numpy(), y.double().numpy()) for x, y in patients]
    naive = naive_dp.clipped_sum(weights, arrays, clip_norm=clip_norm)
    expected = np.concatenate([naive[key].ravel() for key in weights])

    for back_end in BACK_ENDS:
        found = _sum(back_end, name, patients, clip_norm=clip_norm, chunk=chunk).numpy()

        assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


@few
@given(
    counts=st.lists(st.integers(1, 9), min_size=0, max_size=20),
    limit=st.integers(1, 6),
    max_records=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_chunks_hold_every_drawn_record_once_and_never_split_a_patient(
    counts: list[int], limit: int, max_records: int, seed: int
) -> None:
    starts = np.cumsum([0, *counts]).astype(np.int64)
    chosen = np.arange(0, len(counts), 2, dtype=np.int64)

    draw = draw_records(Repeatable(seed), starts=starts, chosen=chosen, limit=limit)
    pieces = list(chunks(draw, max_records=max_records))

    assert draw.sizes.tolist() == [min(counts[p], limit) for p in chosen]
    assert len(set(draw.rows.tolist())) == len(draw.rows)
    owner = np.searchsorted(starts, draw.rows, side="right") - 1
    assert owner.tolist() == np.repeat(chosen, draw.sizes).tolist()
    assert _joined(pieces) == (draw.rows.tolist(), draw.sizes.tolist())
    assert all(p.sizes.sum() == len(p.rows) for p in pieces)
    assert all(len(p.rows) <= max_records or len(p.sizes) == 1 for p in pieces)


def _joined(pieces: list[Draw]) -> tuple[list[int], list[int]]:
    rows = [row for piece in pieces for row in piece.rows.tolist()]
    return rows, [size for piece in pieces for size in piece.sizes.tolist()]


@few
@given(
    rows=st.lists(
        st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=3, max_size=3),
        min_size=1,
        max_size=5,
    ),
    clip_norm=st.floats(1e-6, 1e6),
)
def test_a_clipped_row_is_within_the_bound_or_zero_and_depends_on_no_other(
    rows: list[list[float]], clip_norm: float
) -> None:
    vectors = torch.tensor(rows, dtype=torch.float32)

    clipped = clip_l2(vectors, clip_norm=clip_norm)

    assert bool((clipped.norm(dim=1) <= clip_norm * (1 + 1e-14)).all())
    for row, result in zip(vectors, clipped, strict=True):
        if bool(torch.isfinite(row).all()):
            within = float(row.double().norm()) <= clip_norm
            assert not within or torch.equal(result, row.double())
        else:
            assert not bool(result.any())
        assert torch.equal(clip_l2(row[None], clip_norm=clip_norm)[0], result)
