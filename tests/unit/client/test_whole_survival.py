"""The example study of whole patients' survival: what is signed and what a guard lets out of it."""

import numpy as np
import pytest

from fedward_client.guard.payloads import check_payload
from fedward_client.guard.receipts import Live
from fedward_common.arrays import tensors_to_bytes
from fedward_common.errors import ConfigError, ProtocolError
from fedward_common.ids import SiteId
from fedward_common.models.registry import initial_tensors, model_shapes
from fedward_common.study.files import parse_study
from fedward_common.study.inputs import input_size
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.spec import StudySpec
from fedward_common.study.tabular import TimeLabel
from fedward_common.wire import Instruction
from tests.support.studies import LEAD, STUDY_FILES, site_keys

TEXT = (STUDY_FILES / "whole-survival.toml").read_text(encoding="utf-8")


def parsed(text: str = TEXT) -> StudySpec:
    return parse_study(
        text,
        source="study.toml",
        keys=site_keys(("north", "east", "south")),
        lead_key_sha256=LEAD,
        resolve=lambda _study, _unknown: 1.0,
    )


def test_the_label_is_the_time_of_the_one_modality_that_has_it() -> None:
    data = parsed().data

    assert isinstance(data, MultimodalData)
    assert data.is_timed
    assert isinstance(data.label, TimeLabel)
    assert data.label.event_column == "dead"
    assert getattr(data.parts["tissue"], "label", "none") is None


def test_the_study_writes_out_the_tensors_of_risk_score_and_baselines() -> None:
    study = parsed()

    written = {tensor.name: tensor.shape for tensor in study.model.tensors}

    assert written == model_shapes(study.model, input_size(study.data))
    assert written["baseline.weight"] == (5, 1)
    assert {name.partition(".")[0] for name in written} == {"risk", "baseline"}


def test_a_guard_lets_an_update_of_these_tensors_out_and_no_other() -> None:
    study = parsed()
    inputs = input_size(study.data)
    instruction = Instruction(
        kind="train",
        study=study.digest,
        round=1,
        attempt=0,
        model_sha256="0" * 64,
        cohort=tuple(SiteId(site.id) for site in study.sites),
        roster_sha256=study.roster_sha256,
    )
    live = Live(instruction=instruction, study=study)
    update = initial_tensors(study.model, inputs)
    without_risk = {name.removeprefix("risk."): array for name, array in update.items()}
    broken = update | {"baseline.weight": np.full((5, 1), np.nan, dtype=np.float32)}

    def shapes(found: StudySpec) -> dict[str, tuple[int, ...]]:
        return {tensor.name: tensor.shape for tensor in found.model.tensors}

    check_payload(live, tensors_to_bytes(update), shapes=shapes)
    for other in (without_risk, broken):
        with pytest.raises(ProtocolError):
            check_payload(live, tensors_to_bytes(other), shapes=shapes)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('name = "proportional-hazards"', 'name = "multimodal"', "the name proportional-hazards"),
        (
            'likelihood = "proportional-hazards"',
            'likelihood = "discrete-hazard"',
            "the name multimodal",
        ),
        ("outputs = 5 ", "outputs = 1 ", "model.outputs: expected 5, found 1"),
        ('label_from = "records"', 'label_from = "tissue"', "a modality with an event, a class"),
        (
            'event_column = "dead"\nlongest_days = 1826.0',
            "low = 0\nhigh = 1826\npositive_from = 365",
            "task.kind: expected one that fits the label",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_signed(old: str, new: str, reason: str) -> None:
    assert old in TEXT

    with pytest.raises(ConfigError, match=reason):
        parsed(TEXT.replace(old, new))
