"""A study in plain words for its lead: what runs where, what leaves, what it costs a patient."""

from typing import Any

from fedward_common.models.registry import model_shapes
from fedward_common.privacy import accounting, mechanism
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.evaluation import EvaluationRelease
from fedward_common.study.files import SiteKeys
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.harmonisation import SiteHarmonisation
from fedward_common.study.imaging import Pictures
from fedward_common.study.inputs import input_size
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.notes import NotesData
from fedward_common.study.profiles import ProfileData
from fedward_common.study.registry import ReleaseSpec
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.statistics import ColumnStatistics, declared, is_statistics
from fedward_common.study.variant_statistics import VariantRelease
from fedward_server.report.figures import delta_text, epsilon_number, unit_text
from fedward_server.study_files import key_words


def summary(study: StudySpec, *, final: bool) -> dict[str, Any]:
    """The facts of a study; `final` says that its keys are the real ones, so its digest is too."""
    plan = declared(study)
    event = mechanism.study_event(study)
    return {
        "id": study.id,
        "title": study.title,
        "task": study.task.kind,
        "digest": study.digest if final else None,
        "rounds": study.rounds,
        "quorum": study.quorum,
        "unit": plan.unit,
        "delta": plan.delta,
        "epsilon_declared": plan.epsilon,
        "epsilon_is": plan.epsilon_is,
        "epsilon_admission": accounting.epsilon_admission([event], delta=plan.delta),
        "epsilon_pld": accounting.epsilon_pld(event, delta=plan.delta),
        "reads": reads(study),
        "leaves": list(leaves(study)),
        "sites": {
            site.id: {
                "patients": site.patients,
                "words": key_words(
                    SiteKeys(key_sha256=site.key_sha256, node_key_sha256=site.node_key_sha256)
                )
                if final
                else None,
            }
            for site in study.sites
        },
    }


def reads(study: StudySpec) -> list[str]:
    """The names of the columns that are read, or the codes of clinical data."""
    if isinstance(study.data, MultimodalData):
        return [
            f"{name}: {', '.join(reads(study.model_copy(update={'data': part})))}"
            for name, part in study.data.parts.items()
        ]
    if isinstance(study.data, ClinicalData):
        return list(study.data.concepts)
    if isinstance(study.data, Pictures):
        return ["images", *study.data.columns]
    if isinstance(study.data, NotesData | LabelledRows):
        layers = study.data.layers if isinstance(study.data, ProfileData) else ()
        return [*(f"{one.name} ({len(one.genes)} genes)" for one in layers), *study.data.columns]
    if isinstance(study.data, Genotypes):
        return [f"genotypes at {len(study.data.loci)} loci", *study.data.table_columns]
    return [column.name for column in getattr(study.data, "columns", ())]


def leaves(study: StudySpec) -> tuple[str, ...]:
    """What each hospital sends, one line per kind; nothing else may pass its guard."""
    lines = [_release(release) for release in study.releases]
    if not is_statistics(study):
        lines.insert(0, _updates(study))
    return (*lines, "nothing else: no record, no exact count, no loss, no timing")


def summary_text(facts: dict[str, Any]) -> str:
    """`summary` for people."""
    sites = facts["sites"]
    width = max(len(name) for name in sites)
    delta = delta_text(facts["delta"])
    lines = [
        f"study {facts['id']}: {facts['title']}",
        f"  digest    {facts['digest'] or 'not before the keys of sites and lead are known'}",
        f"  task      {facts['task']}, {facts['rounds']} rounds, quorum {facts['quorum']}",
        f"  costs     ε = {epsilon_number(facts['epsilon_admission'])} by admission, "
        f"{epsilon_number(facts['epsilon_pld'])} by PLD, at δ = {delta} {unit_text(facts['unit'])}",
        f"  reads     {', '.join(facts['reads'])}",
        *(f"  leaves    {line}" for line in facts["leaves"]),
    ]
    for name, site in sites.items():
        confirmed = f"  keys: {site['words']}" if site["words"] else ""
        lines.append(f"  site      {name:<{width}}  {site['patients']} patients{confirmed}")
    return "\n".join(lines)


def _updates(study: StudySpec) -> str:
    if not isinstance(study.dp, DpSgd):
        return f"in each of {study.rounds} rounds: an update of the model"
    shapes = model_shapes(study.model, inputs=input_size(study.data))
    numbers = 0
    for shape in shapes.values():
        size = 1
        for side in shape:
            size *= side
        numbers += size
    return (
        f"in each of {study.rounds} rounds: a model of {numbers} numbers, trained with noise "
        f"{study.dp.noise_multiplier:.4g} x clip norm {study.dp.clip_norm:g} in every step"
    )


def _release(release: ReleaseSpec) -> str:
    if isinstance(release, EvaluationRelease):
        when = "once" if release.times == 1 else f"up to {release.times} times"
        return f"{when}: {release.counted}, with noise of {release.noise_std:g}"
    if isinstance(release, VariantRelease):
        return f"once: {release.said}, with noise of {release.noise_multiplier:g} x sensitivity"
    if isinstance(release, SiteHarmonisation):
        return (
            f"nothing: the location and scale of {', '.join(release.columns)} at each hospital, "
            f"computed once with noise of {release.noise_multiplier:g} x sensitivity, stay there; "
            "the updates depend on them"
        )
    if isinstance(release, ColumnStatistics):
        return (
            f"once: {', '.join(release.statistics)} of {', '.join(release.columns)}, with "
            f"{release.mechanism} noise of {release.noise_multiplier:g} x sensitivity; cells below "
            f"{release.min_cell_size} patients stay at the hospital"
        )
    return f"once: {release.kind}"
