"""A GAN's rounds over real guards and workers: the generator follows from what was released."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_common.arrays import Tensors, tensors_from_bytes
from fedward_common.models.generator_descent import GeneratorDescent
from fedward_common.models.registry import initial_tensors, model_shapes
from fedward_common.study.generation import GENERATOR
from fedward_common.study.spec import StudySpec
from tests.support import secure_federation
from tests.support.federation import FakeStore
from tests.support.guard_site import a_study
from tests.support.secure_federation import federation

GAN: dict[str, Any] = {
    "task": {"kind": "generation", "generator_steps": 2, "generator_rate": 0.01},
    "model": {"name": "gan", "hidden": [8], "shape": [2]},
    "data": a_study().data.model_dump(mode="json") | {"label": None},
    "releases": [],
}


def shapes(study: StudySpec) -> Mapping[str, tuple[int, ...]]:
    return model_shapes(study.model, 2)


def own(model: Tensors, *, generator: bool) -> dict[str, Any]:
    return {n: t for n, t in model.items() if n.startswith(GENERATOR) == generator}


@pytest.mark.parametrize(
    ("placement", "change"),
    [("distributed", {}), ("local", {}), ("local", {"secure_sum": False})],
    ids=["distributed", "local in secret sums", "local in the open"],
)
def test_every_round_s_generator_is_a_function_of_what_was_released_before_it(
    placement: str, change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the checkpoints alone, without a hospital, every generator is computed again to the
    byte: its step has nothing of a patient that the discriminators do not have.
    """
    monkeypatch.setattr(secure_federation, "update_shapes", shapes)
    one = federation(
        tmp_path, placement=placement, rounds=3, policy={"allowed_tasks": ["generation"]},
        change=GAN | change,
    )  # fmt: skip
    try:
        run, store = one.run(), FakeStore()
        run.store = store
        result = run.run()
    finally:
        one.close()

    assert result.committed_rounds == 3
    descent = GeneratorDescent(one.study)
    before: Tensors = initial_tensors(one.study.model, 2)
    for number in (1, 2, 3):
        after = tensors_from_bytes(store.checkpoints[number])
        discriminator = own(after, generator=False)
        assert all((discriminator[n] != before[n]).any() for n in discriminator)
        again = descent.after_round({**discriminator, **own(before, generator=True)})
        assert all(np.array_equal(again[name], after[name]) for name in after)
        assert all((after[n] != before[n]).any() for n in own(after, generator=True))
        before = after
