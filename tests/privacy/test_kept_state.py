"""SCAFFOLD and FedBN over real guards and workers: what stays, what leaves, what it is made of."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_client.guard.main import study_shapes
from fedward_common.arrays import tensors_from_bytes
from fedward_common.errors import StudyFailed
from fedward_common.ids import SiteId
from fedward_common.models.registry import initial_tensors
from fedward_common.study.kept import new_state, opened_round
from fedward_server.aggregation import server_optimiser
from tests.support.secure_federation import Federation, federation

SCAFFOLD = {"aggregation": {"name": "scaffold", "average_last": 1}}


@pytest.fixture
def opened() -> Iterator[list[Federation]]:
    found: list[Federation] = []
    yield found
    for one in found:
        one.close()


def a_federation(folder: Path, opened: list[Federation], *, secure: bool, **more: Any) -> Any:
    change = {**SCAFFOLD, "secure_sum": secure, **more}
    one = federation(
        folder, placement="local", local_steps=2, change=change, noise_multiplier=1.0, epsilon=9.0
    )
    opened.append(one)
    return one


def kept(one: Federation, site: SiteId) -> bytes:
    return one.hospitals[site].service.states.find(one.study)


def test_a_variate_is_a_function_of_the_released_update_and_public_numbers(
    tmp_path: Path, opened: list[Federation]
) -> None:
    """So it costs nothing: recomputed here from what the coordinator sent and saw, bit for bit."""
    one = a_federation(tmp_path, opened, secure=False)
    sent: list[bytes] = []
    original = one.tamper

    def listen(site: SiteId, envelope: Any) -> Any:
        sent.append(envelope.blobs["model"])
        return original(site, envelope)

    one.tamper = listen
    state: dict[SiteId, Any] = {site: {} for site in one.hospitals}
    one.run().run()
    trained = [
        (site, asked, answer, model)
        for (site, asked, answer), model in zip(one.seen, sent, strict=True)
        if asked.kind == "train"
    ]
    assert len(trained) == 9
    for site, _, answer, model in trained:
        before, shared = opened_round(tensors_from_bytes(model))
        after = tensors_from_bytes(answer.blobs["payload"])
        state[site] = new_state(
            one.study, before=before, after=after, shared=shared, state=state[site]
        )
    for site, expected in state.items():
        found = tensors_from_bytes(kept(one, site))
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        assert any(value.any() for value in expected.values())


@pytest.mark.parametrize("secure", [False, True])
def test_a_scaffold_study_ends_with_a_model_and_every_round_committed(
    tmp_path: Path, opened: list[Federation], secure: bool
) -> None:
    one = a_federation(tmp_path, opened, secure=secure)

    result = one.run().run()

    assert result.committed_rounds == 3
    assert all(np.isfinite(value).all() for value in result.model.values())
    # The variates add up to the shared one; the secure sum's grid rounds at 1e-4 here.
    own = [tensors_from_bytes(kept(one, site)) for site in one.hospitals]
    weights = [one.study.weight(site) for site in one.hospitals]
    total = sum(w * state["linear.weight"] for w, state in zip(weights, own, strict=True))
    last = [seen for seen in one.seen if seen[1].kind == "train"][-1]
    assert last[1].round == 3
    assert server_optimiser(one.study).shared()["linear.weight"].shape == total.shape


def test_state_of_a_round_that_was_not_answered_is_not_kept(
    tmp_path: Path, opened: list[Federation]
) -> None:
    """A computation whose answer was never sealed leaves nothing for the next one."""
    one = a_federation(tmp_path, opened, secure=False)
    site = next(iter(one.hospitals))
    service = one.hospitals[site].service

    with pytest.raises(Exception, match="receipt"):
        service.seal("0" * 64, b"", state=b"x")

    assert kept(one, site) == b""


def test_state_survives_a_restart_of_the_guard(tmp_path: Path, opened: list[Federation]) -> None:
    one = a_federation(tmp_path, opened, secure=False)
    one.run().run()
    site = next(iter(one.hospitals))
    before = kept(one, site)

    one.hospitals[site].restart()

    assert before
    assert kept(one, site) == before


@pytest.mark.parametrize("secure", [False, True])
def test_normalisation_layers_of_fedbn_are_in_no_update_and_differ_between_sites(
    tmp_path: Path, opened: list[Federation], secure: bool
) -> None:
    one = a_federation(
        tmp_path,
        opened,
        secure=secure,
        model={"name": "mlp", "hidden": [3]},
        aggregation={"name": "fedbn", "average_last": 1, "kept": ["hidden.1."]},
    )
    for hospital in one.hospitals.values():
        hospital.service = replace(hospital.service, shapes=study_shapes)

    result = one.run().run()

    own = [tensors_from_bytes(kept(one, site)) for site in one.hospitals]
    assert all(set(state) == {"hidden.1.bias", "hidden.1.weight"} for state in own)
    assert len({state["hidden.1.bias"].tobytes() for state in own}) == 3
    start = initial_tensors(one.study.model, inputs=2)
    assert np.array_equal(result.model["hidden.1.bias"], start["hidden.1.bias"])
    assert not np.array_equal(result.model["output.weight"], start["output.weight"])
    trained = [answer for _, asked, answer in one.seen if asked.kind == "train"]
    if not secure:
        for answer in trained:
            names = set(tensors_from_bytes(answer.blobs["payload"]))
            assert names == set(start) - {"hidden.1.bias", "hidden.1.weight"}
    else:
        size = sum(value.size for name, value in start.items() if not name.startswith("hidden.1."))
        assert {len(answer.blobs["payload"]) for answer in trained} == {4 * size}


def test_fedbn_that_keeps_something_else_is_refused(
    tmp_path: Path, opened: list[Federation]
) -> None:
    one = a_federation(
        tmp_path,
        opened,
        secure=False,
        aggregation={"name": "fedbn", "average_last": 1, "kept": ["linear.bias"]},
    )

    with pytest.raises(StudyFailed, match="config"):
        one.run().run()
