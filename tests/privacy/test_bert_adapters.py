"""A BERT from a local folder, fine-tuned by adapters or a head: only those are trained and sent."""

from typing import Any

import numpy as np
import pytest
import torch

from fedward_client.audit import AuditPorts, ReleasedModel, audit_study
from fedward_client.tasks.registry import task_of
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.arrays import Array, tensors_to_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.models.start import start_tensors
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec
from fedward_common.study.tasks import check_task
from fedward_server.bert_weights import BertStart, read_bert
from tests.support.bert_folder import make_bert
from tests.support.naive_dp import Repeatable
from tests.support.studies import make_dp, make_spec

LORA = {"lora": {"rank": 1, "layers": ["encoder.layers.0.query", "encoder.layers.1.value"]}}
KEPT = [
    *("encoder.embedding.", "encoder.layers.0.key", "encoder.layers.0.value"),
    *("encoder.layers.0.joined", "encoder.layers.0.n", "encoder.layers.0.wide"),
    *("encoder.layers.0.after", "encoder.layers.1.query", "encoder.layers.1.key"),
    *("encoder.layers.1.joined", "encoder.layers.1.n", "encoder.layers.1.wide"),
    "encoder.layers.1.after",
]
ILL = {"column": "ill", "low": 0, "high": 1, "positive_from": 1}
TAGS = {"column": "tags", "types": ["Disease"]}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> BertStart:
    return read_bert(make_bert(tmp_path_factory.mktemp("made") / "bert"))


def study(start: BertStart, *, lora: bool, tags: bool = False, tokens: int = 6) -> StudySpec:
    model: dict[str, Any] = {
        "name": "bert",
        "hidden": start.hidden,
        "shape": [1, start.pieces + 1],
        "outputs": 3 if tags else 1,
        "start": {"sha256": sha256_hex(tensors_to_bytes(start.tensors)), "tensors": ["encoder."]},
    }
    # With adapters all of the encoder but these is frozen by the names of its parts.
    frozen = {"frozen": KEPT if lora else ["encoder."]}
    return make_spec(
        task={"kind": "text-ner" if tags else "text-classification"},
        model=model | (LORA if lora else {}),
        data={
            "kind": "notes",
            "tokeniser": {
                "kind": "word-pieces",
                "max_tokens": tokens,
                "vocabulary_sha256": start.vocabulary_sha256,
                "pieces": start.pieces,
            },
            "label": TAGS if tags else ILL,
            "split": {"kind": "column", "column": "split"},
        },
        training={"learning_rate": 0.5} | frozen,
        rounds=1,
        local_steps=2,
        dp=make_dp(steps=2),
        releases=[],
    )


def weights_of(spec: StudySpec, start: BertStart) -> dict[str, Array]:
    return start_tensors(spec.model, input_size(spec.data), file=tensors_to_bytes(start.tensors))


def records(spec: StudySpec, patients: int = 8) -> PatientRecords:
    """Notes of two records each, as the task makes them up."""
    features, labels = task_of(spec).examples(device=torch.device("cpu"))(2 * patients)
    return PatientRecords(
        features=features.numpy(),
        labels=labels.numpy(),
        patient=np.repeat(np.arange(patients), 2),
    )


@pytest.mark.parametrize("tags", [False, True], ids=["answer", "tags"])
@pytest.mark.parametrize("lora", [False, True], ids=["head", "lora"])
def test_only_what_is_not_frozen_is_trained(start: BertStart, lora: bool, tags: bool) -> None:
    spec = study(start, lora=lora, tags=tags)
    check_task(spec)
    before = weights_of(spec, start)
    trainer = LocalTrainer(
        spec,
        SiteId(spec.sites[0].id),
        sampling=Repeatable(1),
        noise=Repeatable(2),
        flags=PerformanceFlags(),
    )

    update = trainer.train(before, records(spec))

    moved = {name for name in before if (update.tensors[name] != before[name]).any()}
    head = {"answers.linear.weight", "answers.linear.bias"}
    adapters = {name for name in before if name.endswith((".down.weight", ".up.weight"))}
    assert len(adapters) == (4 if lora else 0)
    others = {name for name in before if not spec.is_frozen(name)}
    assert moved == others
    assert moved >= head | adapters
    if not lora:
        assert moved == head
    for name, array in start.tensors.items():
        placed = name if name in before else ".base.".join(name.rsplit(".", 1))
        np.testing.assert_array_equal(before[placed], array)


@pytest.mark.parametrize(
    ("lora", "tags"), [(False, True), (True, False)], ids=["head, tags", "lora, answer"]
)
def test_the_audit_finds_one_patient_in_every_sum_bounded(
    start: BertStart, lora: bool, tags: bool
) -> None:
    spec = study(start, lora=lora, tags=tags, tokens=4)
    weights = weights_of(spec, start)

    report = audit_study(
        spec,
        SiteId(spec.sites[0].id),
        flags=PerformanceFlags(),
        noise_steps=32,
        ports=AuditPorts(sampling=Repeatable(3), noise=Repeatable(4)),
        model=ReleasedModel(weights=weights, sha256="0" * 64),
    )

    assert {finding.name for finding in report.findings if not finding.passed} == set()


def test_a_text_longer_than_the_places_of_the_weights_is_refused(start: BertStart) -> None:
    spec = study(start, lora=False, tokens=19)

    with pytest.raises(ConfigError, match="expected at most 18 for bert with 20 places"):
        weights_of(spec, start)
