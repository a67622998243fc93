"""The audit on every kind of data: healthy studies pass, planted bugs are found.

One small study a kind. Planted: half the noise, a clip of three times C, a loss of shape
[records, 1], and loaders that centre on a site's own patients or let numbers beyond the study's
range through. Sources are repeatable, so that every test passes always or never.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from fedward_client.audit import AuditPorts, AuditReport, Finding, audit_study
from fedward_client.audit.input_limits import input_limits, outermost
from fedward_client.audit.inversion import inversion_findings, why_not_tried
from fedward_client.audit.made_up_rows import load_rows
from fedward_client.audit.noise import (
    block_findings,
    noise_findings,
    run_block_steps,
    run_noise_steps,
)
from fedward_client.audit.sensitivity import (
    Loader,
    Patient,
    Quiet,
    StepProbe,
    _faulty,
    _ordinary,
    _worst_cases,
    probe_loader,
)
from fedward_client.audit.source_rows import SourceRow
from fedward_client.training import trainer as trainer_module
from fedward_client.training.trainer import PerformanceFlags
from fedward_common.ids import SiteId
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.generation import Generation
from fedward_common.study.spec import StudySpec
from tests.privacy.test_audit_models import ColumnLossTrainer, HalfNoiseEngine, TripleClipEngine
from tests.support.genotype_studies import genotype_data
from tests.support.image_studies import SIDE
from tests.support.multimodal import fusion, multimodal_data
from tests.support.naive_dp import Repeatable
from tests.support.studies import make_data, make_dp, make_spec

SPLIT = {"kind": "column", "column": "split"}
HASH = {"kind": "hash", "salt": "x", "held_out": 0.3}
ILL = {"column": "ill", "low": 0, "high": 1, "positive_from": 1}
CLASSES = {"column": "kind", "classes": ["a", "b", "c"]}
CLIP = 0.01
HASHED = {"kind": "hashed-words", "max_tokens": 6, "buckets": 64}


def made(task: str, model: dict[str, Any], data: dict[str, Any], **changes: Any) -> StudySpec:
    """A study of two steps and patients of up to four records, whose clip norm everybody meets."""
    dp = make_dp(steps=2, clip_norm=CLIP) | {"max_records_per_patient": 4}
    settings = {"rounds": 1, "local_steps": 2, "dp": dp, "releases": []}
    return make_spec(
        **(settings | {"task": {"kind": task}, "model": model, "data": data} | changes)
    )


def notes(tokeniser: dict[str, Any], label: dict[str, Any], **changes: Any) -> dict[str, Any]:
    data = {"kind": "notes", "tokeniser": tokeniser, "label": label, "split": SPLIT}
    return data | changes


def sequences(encoding: dict[str, Any], **changes: Any) -> dict[str, Any]:
    data = {
        "kind": "sequence",
        "alphabet": "dna",
        "length": 8,
        "encoding": encoding,
        "label": CLASSES,
        "split": HASH,
    }
    return data | changes


def molecules(encoding: dict[str, Any], label: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "kind": "molecule",
        "no_patient_key": True,
        "encoding": encoding,
        "label": label,
        "split": SPLIT,
    } | changes


def profiles(**changes: Any) -> dict[str, Any]:
    layers = [
        {"name": "rna", "scale": "z-score", "genes": ["G0", "G1", "G2"], "weight": 0.5},
        {"name": "cn", "scale": "copy-number", "genes": ["G0", "G1"], "missing": "fill"},
        {"name": "raw", "scale": "counts", "genes": ["G0", "G1"], "missing": "fill"},
    ]
    age = {"name": "age", "type": "number", "unit": "years", "low": 20.0, "high": 100.0}
    return {
        "kind": "profiles",
        "layers": layers,
        "clinical": [age],
        "label": ILL,
        "split": SPLIT,
    } | changes


def masks(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "image-masks",
        "height": 8,
        "width": 16,
        "structures": ["core", "edge"],
        "patch": [8, 8],
        "stride": [8, 8],
        "spacing_mm": [1.0, 1.0],
        "split": HASH,
    } | changes


def whole(**kin: str) -> StudySpec:
    """A note, k-mers, profiles and genotypes beside a table with the label; with `kin` families."""
    table = make_data()
    del table["split"]
    parts = {
        "table": table,
        "note": notes(HASHED, ILL),
        "gene": sequences({"kind": "k-mers", "k": 2}, ambiguous="unknown", other_lengths="fit"),
        "omics": profiles(),
        "genome": genotype_data(label=None, **kin),
    }
    sizes = {"table": 3, "note": 24, "gene": 7, "omics": 8, "genome": 4}
    data = multimodal_data(
        modalities=[
            {"name": name, "data": {k: v for k, v in part.items() if k != "split"}}
            for name, part in parts.items()
        ],
        label_from="table",
    )
    encoders = [{"modality": name, "name": "linear", "inputs": sizes[name]} for name in sizes]
    encoders[1] = encoders[1] | {"name": "bilstm", "hidden": [2, 2], "shape": [4, 65]}
    model = {"name": "multimodal", "fusion": fusion("concatenation") | {"encoders": encoders}}
    dp = make_dp(steps=2, clip_norm=CLIP) | {"max_records_per_patient": 4, "unit": "family"}
    changes = {"dp": dp} if kin else {}
    return made("multimodal", model, data, genomic=True, **changes)


@cache
def study(name: str) -> StudySpec:
    bilstm = {"name": "bilstm", "hidden": [2, 2]}
    words = {"name": "text-transformer", "hidden": [4, 4], "outputs": 1, "shape": [4, 65]}
    mlp = {"name": "mlp", "hidden": [4]}
    fingerprint = {"kind": "morgan", "bits": 64, "descriptors": True}
    match name:
        case "notes":
            shaped = bilstm | {"outputs": 1, "shape": [4, 65]}
            return made("text-classification", shaped, notes(HASHED, ILL, identifiers=["name"]))
        case "notes of word pieces":
            pieces = {"kind": "word-pieces", "max_tokens": 6, "pieces": 300}
            pieces["vocabulary_sha256"] = "a" * 64
            shaped = words | {"shape": [1, 301]}
            return made("text-classification", shaped, notes(pieces, ILL))
        case "notes of bytes":
            shaped = bilstm | {"outputs": 1, "shape": [1, 257]}
            data = notes({"kind": "bytes", "max_tokens": 6}, ILL)
            return made("text-classification", shaped, data)
        case "tags":
            tags = {"column": "tags", "types": ["Disease"]}
            shaped = bilstm | {"outputs": 3, "shape": [4, 65]}
            return made("text-ner", shaped, notes(HASHED, tags))
        case "pairs":
            pair = {"column": "relation", "first": "drug", "second": "problem"}
            shaped = {"name": "relation-bilstm", "hidden": [2, 2], "outputs": 3, "shape": [4, 69]}
            data = notes(HASHED, pair | {"relations": ["treats", "causes"]}, identifiers=["name"])
            return made("text-relations", shaped, data)
        case "masks":
            unet = {"name": "unet", "shape": [1, 8, 8], "hidden": [2, 4], "outputs": 3}
            return made("image-segmentation", unet, masks())
        case "several labels of images":
            data = {"kind": "image", "height": SIDE, "width": SIDE, "split": SPLIT}
            cnn = {"name": "cnn", "shape": [1, SIDE, SIDE], "hidden": [2, 4], "outputs": 2}
            data["label"] = {"labels": ["left", "right"]}
            return made("image-classification", cnn, data)
        case "letters":
            data = sequences({"kind": "one-hot"})
            return made("sequence-classification", mlp | {"outputs": 3}, data, genomic=True)
        case "words of letters":
            data = sequences(
                {"kind": "k-mers", "k": 2}, ambiguous="unknown", other_lengths="fit", label=ILL
            )
            model = {"name": "sequence-transformer", "hidden": [4, 4], "shape": [1, 18]}
            return made("sequence-classification", model, data, genomic=True)
        case "fingerprints":
            data = molecules(fingerprint, {"answers": ["acid", "ring"]})
            return per_record("molecule-property", mlp | {"outputs": 2}, data)
        case "graphs":
            data = molecules({"kind": "graph", "atoms": 12}, ILL, split=HASH | {"kind": "scaffold"})
            model = {"name": "graph-network", "hidden": [4, 4], "shape": [24, 12]}
            return per_record("molecule-property", model, data)
        case "pairs":
            return pairs(fingerprint | {"descriptors": False})
        case "generated":
            gan = {"name": "gan", "hidden": [8], "shape": [2], "categories": [[1, 3]]}
            return made("generation", gan, make_data(label=None))
        case "generated of a class":
            gan = {"name": "gan", "hidden": [8], "shape": [2], "outputs": 2}
            label = {"column": "ill", "low": 0, "high": 1, "positive_from": 1}
            data = {"kind": "image", "height": 8, "width": 8, "label": label, "split": HASH}
            return made("generation", gan, data).model_copy(
                update={"task": Generation(class_shares=(0.5, 0.5))}
            )
        case "profiles":
            return made("expression-classification", mlp, profiles(), genomic=True)
        case "genotypes":
            data = genotype_data(coding="dosage", split=HASH)
            return made("genotype-classification", mlp, data, genomic=True)
        case "families":
            data = genotype_data(coding="haplotypes", split=HASH, family_key="family")
            dp = make_dp(steps=2, clip_norm=CLIP)
            dp |= {"max_records_per_patient": 4, "unit": "family"}
            return made("genotype-classification", mlp, data, genomic=True, dp=dp)
        case "everything of families":
            return whole(family_key="family")
        case _:
            return whole()


def pairs(fingerprint: dict[str, Any]) -> StudySpec:
    """Molecules and words of proteins, each with an encoder."""
    protein = {"alphabet": "protein", "length": 8, "encoding": {"kind": "k-mers", "k": 1}}
    protein |= {"ambiguous": "unknown", "other_lengths": "fit"}
    number = {"column": "pkd", "unit": "pKd", "low": 5.0, "high": 10.0}
    encoders = [
        {"modality": "molecule", "name": "mlp", "hidden": [4], "inputs": 64},
        {"modality": "protein", "name": "sequence-transformer", "hidden": [4, 4], "inputs": 8},
    ]
    encoders[1] |= {"shape": [1, 22]}
    fused = {"how": "gated", "width": 4, "encoders": encoders}
    data = molecules(fingerprint, number, kind="drug-target", protein=protein)
    data["molecule"] = {"encoding": data.pop("encoding")}
    return per_record("drug-target", {"name": "multimodal", "fusion": fused}, data, genomic=True)


def per_record(task: str, model: dict[str, Any], data: dict[str, Any], **changes: Any) -> StudySpec:
    dp = make_dp(steps=2, clip_norm=CLIP) | {"unit": "record"}
    return made(task, model, data, dp=dp, **changes)


def audit(name: str, **changes: Any) -> AuditReport:
    ports = AuditPorts(**({"sampling": Repeatable(6), "noise": Repeatable(7)} | changes))
    chosen = study(name)
    return audit_study(
        chosen,
        SiteId(chosen.sites[0].id),
        flags=PerformanceFlags(backend="loop"),
        noise_steps=16,
        canaries=not changes,
        ports=ports,
    )


def failed(report: AuditReport) -> set[str]:
    return {finding.name for finding in report.findings if not finding.passed}


def measured_of(report: AuditReport, name: str) -> float:
    return next(finding.measured for finding in report.findings if finding.name == name)


KINDS = (
    "notes",
    "notes of word pieces",
    "notes of bytes",
    "tags",
    "pairs",
    "masks",
    "several labels of images",
    "letters",
    "words of letters",
    "fingerprints",
    "graphs",
    "pairs",
    "generated",
    "generated of a class",
    "profiles",
    "genotypes",
    "families",
    "everything",
    "everything of families",
)


@pytest.mark.parametrize("name", KINDS)
def test_made_up_patients_of_every_kind_are_in_range_and_nobody_moves_another(name: str) -> None:
    findings, patients = probe_loader(study(name), load_rows)

    assert {one.name for one in findings if not one.passed} == set()
    assert len(patients) >= 4
    assert len({labels.tobytes() for _, labels in patients}) >= 2
    assert findings[0].measured > 0.05


SLOW = [pytest.param(name, marks=() if name == "genotypes" else pytest.mark.slow) for name in KINDS]


@pytest.mark.parametrize("name", SLOW)
def test_a_healthy_study_of_every_kind_passes_all_three_layers(name: str) -> None:
    report = audit(name)

    assert failed(report) == set()
    assert {1, 2, 3} == {finding.layer for finding in report.findings}
    assert measured_of(report, "add-or-remove-one") == pytest.approx(1.0, abs=0.03)


def moved(probe: StepProbe, patients: Sequence[Patient]) -> float:
    """How far the last patient moves the sum, in units of C."""
    both = [probe.exact_sum(probe.start, people) for people in (patients, patients[:-1])]
    return float(np.linalg.norm(both[0] - both[1]))


def probed(name: str, ports: AuditPorts) -> tuple[StepProbe, list[Patient]]:
    """A probe of the study with one ordinary patient, the worst, and one with NaN."""
    chosen, flags = study(name), PerformanceFlags(backend="loop")
    probe = StepProbe(chosen, SiteId(chosen.sites[0].id), flags=flags, ports=ports)
    worst = list(_worst_cases(probe))
    return probe, [_ordinary(probe)[2], worst[4], worst[-2], _faulty(probe)[3]]


@pytest.mark.parametrize("name", KINDS)
def test_one_step_on_every_kind_keeps_its_bounds_and_carries_its_noise(name: str) -> None:
    ports = AuditPorts(sampling=Repeatable(2), noise=Repeatable(3))
    probe, patients = probed(name, ports)
    flags = PerformanceFlags(backend="loop")

    block = block_findings(run_block_steps(study(name), probe, flags=flags, ports=ports), probe)

    assert 0.9 < moved(probe, patients[:1]) <= 1.001
    assert moved(probe, patients[:3]) <= 1.001
    assert moved(probe, patients) <= 1.001
    assert {one.name for one in block if not one.passed} == set()


planted_in = pytest.mark.parametrize("name", ["tags", "masks", "genotypes"])


@planted_in
def test_noise_halved_is_found_on_new_kinds(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(trainer_module, "PatientDpEngine", HalfNoiseEngine)
    ports = AuditPorts(sampling=Repeatable(2), noise=Repeatable(3), engine=HalfNoiseEngine)
    probe, _ = probed(name, ports)
    flags = PerformanceFlags(backend="loop")

    noise = noise_findings(run_noise_steps(probe, ports, steps=16), probe)
    block = block_findings(run_block_steps(study(name), probe, flags=flags, ports=ports), probe)

    found = {one.name for one in (*noise, *block) if not one.passed}
    assert {"noise-scale", "block-noise"} <= found


@planted_in
def test_a_clip_of_three_times_c_is_found_on_new_kinds(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(trainer_module, "PatientDpEngine", TripleClipEngine)
    ports = AuditPorts(sampling=Repeatable(2), noise=Repeatable(3), engine=TripleClipEngine)
    probe, patients = probed(name, ports)
    flags = PerformanceFlags(backend="loop")

    block = block_findings(run_block_steps(study(name), probe, flags=flags, ports=ports), probe)

    assert max(moved(probe, [patient]) for patient in patients) == pytest.approx(3.0, abs=0.01)
    assert "block-clip" in {one.name for one in block if not one.passed}


@planted_in
def test_a_loss_of_shape_b_1_is_refused_on_new_kinds(name: str) -> None:
    report = audit(name, trainer=ColumnLossTrainer)

    assert failed(report) == {"model-and-loss"}


def centred(study: StudySpec, rows: Sequence[SourceRow]) -> PatientRecords:
    """A loader that subtracts the rows' own mean, which rule 6 forbids."""
    records = load_rows(study, rows)
    if not records.patients:
        return records
    return replace(records, features=(records.features - records.features.mean(axis=0)) / 2)


def unclipped(study: StudySpec, rows: Sequence[SourceRow]) -> PatientRecords:
    """A loader that lets numbers beyond the study's range through."""
    records = load_rows(study, rows)
    return replace(records, features=records.features * np.float32(50.0))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("loader", "finding"), [(centred, "loader-neighbours"), (unclipped, "loader-range")]
)
def test_a_broken_loader_of_every_kind_is_named(name: str, loader: Loader, finding: str) -> None:
    findings, _ = probe_loader(study(name), loader)

    assert finding in {one.name for one in findings if not one.passed}


def test_a_word_is_no_fraction_and_not_negative() -> None:
    limits = input_limits(study("words of letters").data)

    assert outermost(np.array([[0.0, 17.0]], np.float32), limits[:2]) == 1.0
    assert outermost(np.array([[0.5, 1.0]], np.float32), limits[:2]) == np.inf
    assert outermost(np.array([[-1.0, 1.0]], np.float32), limits[:2]) == np.inf


def inverted(name: str, *, noise: Any = None) -> list[Finding]:
    chosen = study(name)
    ports = AuditPorts(noise=noise or Repeatable(3))
    flags = PerformanceFlags(backend="loop")
    probe = StepProbe(chosen, SiteId(chosen.sites[0].id), flags=flags, ports=ports)
    return inversion_findings(chosen, probe=probe, ports=ports)


def test_an_update_without_noise_gives_a_note_s_words_away_and_one_with_noise_does_not() -> None:
    (finding,) = inverted("notes")
    (bare,) = inverted("notes", noise=Quiet())

    assert "100% of patients from their own update" in finding.unit
    assert finding.measured <= 0.1
    assert bare.measured == 1.0


def test_an_inversion_that_cannot_be_tried_is_named_with_its_reason() -> None:
    chosen = study("masks")
    flags, ports = PerformanceFlags(backend="loop"), AuditPorts()
    probe = StepProbe(chosen, SiteId(chosen.sites[0].id), flags=flags, ports=ports)

    (reason,) = why_not_tried(probe)

    assert inversion_findings(chosen, probe=probe, ports=ports) == []
    assert "Conv2d" in reason
