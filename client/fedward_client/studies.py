"""What a site knows of its studies: which there are, what each would do here, what changed.

For people who decide. Everything is read from the signed study, the site's own settings, ledger and
statements; nothing is sent, charged or changed, and no patient record is read.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from fedward_client.budget import filter_share, finite, site_ledger
from fedward_client.guard.main import policy_of, study_shapes
from fedward_client.guard.shelf import read_studies
from fedward_client.policy import NotApproved, SitePolicy
from fedward_client.settings import SiteSettings
from fedward_common.errors import ConfigError
from fedward_common.models.plugins import find_plugin
from fedward_common.privacy.accounting import epsilon_admission, epsilon_pld
from fedward_common.privacy.collusion import collusion_facts
from fedward_common.privacy.ledger import Reservation, StudyAccount
from fedward_common.study.clinical import ClinicalData, Measured, Present
from fedward_common.study.evaluation import EvaluationRelease
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.harmonisation import SiteHarmonisation
from fedward_common.study.imaging import Pictures
from fedward_common.study.kept import kept_words
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.notes import NotesData, RelationLabel
from fedward_common.study.profiles import ProfileData
from fedward_common.study.signed import MAX_STUDY_BYTES, SignedStudy
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.statistics import ColumnStatistics, Table
from fedward_common.study.tabular import (
    LabelRule,
    NumberColumn,
    TabularData,
    TimeLabel,
)
from fedward_common.study.variant_statistics import VariantRelease
from fedward_common.trust.words import words

FORMAT: Final = "fedward-study-report/1"
MIN_PREFIX: Final = 8
DECIDING_PREFIX: Final = 32
"""Of a study that is about to be approved. The coordinator chooses what lies on the shelf: another
study with the same 8 digits is an hour's search away, with the same 32 it is out of reach."""
MISSING: Final = "(not there)"
Status = Literal["approved", "revoked", "waiting"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """A signed study that this site has, verified, and its bytes."""

    signed: SignedStudy
    study: StudySpec


def list_studies(settings: SiteSettings) -> list[dict[str, Any]]:
    """Every study that was approved here or that somebody asked this site to run, oldest first."""
    policy = policy_of(settings)
    known = {str(study.digest): study for _, study in read_studies(settings.studies_folder)}
    digests: list[str] = list(known)
    names: dict[str, str] = {}
    for said in policy.standing.history():
        digest = said.statement.facts.get("study")
        if isinstance(digest, str):
            names[digest] = str(said.statement.facts["study_id"])
            if digest not in known:
                digests.append(digest)
    return [
        {
            "digest": digest,
            "id": known[digest].id if digest in known else names[digest],
            "title": known[digest].title if digest in known else "",
            **_standing(policy, digest),
        }
        for digest in digests
    ]


def find_study(settings: SiteSettings, reference: str, *, least: int = MIN_PREFIX) -> Known:
    """The study in the file `reference`, or on the guard's shelf by the beginning of its digest,
    which is at least `least` digits long.

    Raises:
        ConfigError: there is none, or more than one.
        ProtocolError, SignatureRefused: the file is no signed study.
    """
    path = Path(reference)
    if path.is_file():
        return read_signed(path)
    if len(reference) < least:
        raise ConfigError(
            f"study {reference!r}: expected a file, or at least {least} digits of a digest"
        )
    found = [
        Known(signed=signed, study=study)
        for signed, study in read_studies(settings.studies_folder)
        if study.digest.startswith(reference)
    ]
    if len(found) != 1:
        raise ConfigError(
            f"study {reference!r}: expected a signed study (JSON) or the digest of one study that "
            f"`fedward-client studies list` shows, found {len(found)}"
        )
    return found[0]


def find_named(settings: SiteSettings, reference: str) -> tuple[str, str]:
    """Digest and id of a study, also when only the statements about it are left here.

    Raises:
        ConfigError: as `find_study`.
    """
    named = [one for one in list_studies(settings) if one["digest"].startswith(reference)]
    if len(reference) >= MIN_PREFIX and len(named) == 1:
        return named[0]["digest"], named[0]["id"]
    study = find_study(settings, reference).study
    return study.digest, study.id


def read_signed(path: Path) -> Known:
    """The signed study in a file, verified.

    Raises:
        ConfigError: it cannot be read. ProtocolError, SignatureRefused: it is no signed study.
    """
    try:
        with path.open("rb") as file:
            signed = SignedStudy.parse(file.read(MAX_STUDY_BYTES + 1))
    except OSError as error:
        raise ConfigError(f"{path}: expected a signed study, found {error.strerror}") from error
    return Known(signed=signed, study=signed.verify())


def study_report(settings: SiteSettings, study: StudySpec, *, now: datetime) -> dict[str, Any]:
    """What `study` would do at this site, as a JSON value: see `study_text` for people."""
    policy = policy_of(settings)
    objections = list(policy.objections(study, now=now))
    return {
        "format": FORMAT,
        "site": settings.site,
        "id": study.id,
        "title": study.title,
        "digest": study.digest,
        "digest_words": words(study.digest),
        **_standing(policy, study.digest),
        "task": study.task.kind,
        "model": study.model.name if isinstance(study.dp, DpSgd) else None,
        "plugin": _plugin(settings, study),
        "aggregation": study.aggregation.name if isinstance(study.dp, DpSgd) else None,
        "start_weights": study.model.start and study.model.start.sha256,
        "kept": kept_words(study) or None,
        "rounds": study.rounds,
        "local_steps": study.local_steps,
        "deadline_seconds": study.deadline_seconds,
        "quorum": study.quorum,
        "ethics_valid_until": study.ethics_valid_until,
        "fields": list(_fields(study)),
        "leaves": list(_leaves(study)),
        "privacy": _privacy(settings, policy, study),
        "lead_key_words": words(study.lead_key_sha256),
        "sites": [
            {
                "id": site.id,
                "patients": site.patients,
                "key_words": words(site.key_sha256),
                "us": site.id == settings.site,
            }
            for site in study.sites
        ],
        "objections": [str(one) for one in objections if not isinstance(one, NotApproved)],
    }


def plugin_report(settings: SiteSettings, model: str) -> dict[str, Any]:
    """The installed plugin for a model's name and whether it is approved; no code of it runs.

    Raises:
        ConfigError: there is none, or more than one.
    """
    plugin = find_plugin(model)
    if plugin is None:
        raise ConfigError(
            f"model {model!r}: expected an installed plugin that brings it, found none"
        )
    approved = policy_of(settings).standing.plugins(model)
    return {
        "model": model,
        "package": plugin.package,
        "version": plugin.version,
        "sha256": plugin.sha256,
        "approved": (plugin.package, plugin.version, plugin.sha256) in approved,
    }


def study_diff(settings: SiteSettings, study: StudySpec) -> dict[str, Any]:
    """What changed since the version of this study (its id) that was approved last.

    Raises:
        ConfigError: no other version was approved here, or the guard does not have it any more.
    """
    before = _approved_before(settings, study)
    old, new = dict(_flat(json.loads(before.canonical))), dict(_flat(json.loads(study.canonical)))
    return {
        "format": FORMAT,
        "id": study.id,
        "before": before.digest,
        "after": study.digest,
        "changes": [
            {"field": key, "before": old.get(key, MISSING), "after": new.get(key, MISSING)}
            for key in [*old, *(key for key in new if key not in old)]
            if old.get(key, MISSING) != new.get(key, MISSING)
        ],
    }


def _plugin(settings: SiteSettings, study: StudySpec) -> dict[str, Any] | None:
    if not isinstance(study.dp, DpSgd) or find_plugin(study.model.name) is None:
        return None
    return plugin_report(settings, study.model.name)


def _standing(policy: SitePolicy, digest: str) -> dict[str, Any]:
    approval = policy.standing.approval(digest)
    said = approval or policy.standing.revocation(digest)
    status: Status = "waiting" if said is None else "revoked" if approval is None else "approved"
    return {
        "status": status,
        "by": None if said is None else said.statement.person,
        "at": None if said is None else said.at.isoformat(timespec="seconds"),
    }


def _fields(study: StudySpec) -> Iterator[dict[str, str]]:
    """The columns that are read, each with what it is for."""
    data = study.data
    if isinstance(data, MultimodalData):
        for name, part in data.parts.items():
            for field in _fields(study.model_copy(update={"data": part})):
                yield {**field, "name": f"{name}: {field['name']}"}
        return
    if isinstance(data, ClinicalData):
        yield from _clinical_fields(data)
        return
    if isinstance(data, Pictures | NotesData | LabelledRows):
        yield from _owned_fields(data)
        return
    if isinstance(data, Genotypes):
        use = f"{data.coding} at {len(data.loci)} loci of {data.build}; never leave"
        yield {"name": "genotypes", "use": use}
        kin = "who is kin: all patients of a family are one privacy unit, in every modality"
        for name in data.table_columns:
            use = kin if name == data.family_key else "whose a sample is, inputs, label or held out"
            yield {"name": name, "use": use}
        return
    if not isinstance(data, TabularData | Table):
        return
    yield {"name": data.patient_key, "use": "which rows are one patient; never leaves"}
    for column in data.columns:
        what = (
            f"number in {column.unit}, {column.low:g} to {column.high:g}"
            if isinstance(column, NumberColumn)
            else f"one of {len(column.values)} codes"
        )
        yield {"name": column.name, "use": what}
    if isinstance(data, TabularData):
        yield from _label_fields(data)
    if isinstance(data, TabularData) and data.split.kind == "column":
        yield {"name": data.split.column, "use": "who is held out"}


def _label_fields(data: TabularData) -> Iterator[dict[str, str]]:
    """The columns of a table's label."""
    label = data.label
    if label is None:
        return
    what = "the label"
    if isinstance(label, LabelRule):
        what += f", positive from {label.positive_from}"
    yield {"name": label.column, "use": what}
    if data.unlabelled == "keep":
        yield {
            "name": f"{label.column} (missing)",
            "use": "training patients without a label learn with the class that the round's "
            "model is sure of; they count as any other patient",
        }
    if isinstance(label, TimeLabel):
        yield {"name": label.event_column, "use": "whether the event came"}


def _owned_fields(data: Pictures | NotesData | LabelledRows) -> Iterator[dict[str, str]]:
    """What is read beside a table that says whose it is, and that table's columns."""
    if isinstance(data, Pictures):
        size = " x ".join(map(str, data.size))
        yield {"name": "images", "use": f"pixels, {size}; of a header none"}
        for name in data.columns:
            yield {"name": name, "use": "who is one patient, the label or who is held out"}
        return
    if isinstance(data, NotesData):
        yield {"name": data.text, "use": "the text, scrubbed, then in numbers; never leaves"}
        for name in data.columns:
            if name != data.text:
                own = name in data.identifiers
                use = "taken out of the text" if own else "who is one patient, label or held out"
                if isinstance(data.label, RelationLabel) and name in data.label.columns[1:]:
                    use = "where an entity of a pair is in the text"
                yield {"name": name, "use": use}
        return
    if isinstance(data, LabelledRows):
        for layer in data.layers if isinstance(data, ProfileData) else ():
            yield {"name": layer.name, "use": f"{layer.scale} of {len(layer.genes)} genes"}
        for name in data.columns:
            own = name in data.own_columns
            use = f"{data.what}, in numbers; never leaves" if own else "patient, label or held out"
            yield {"name": name, "use": use}


def _clinical_fields(data: ClinicalData) -> Iterator[dict[str, str]]:
    """The codes that are read, each with every use of it."""
    yield {"name": "patient id, birth date, sex, death", "use": "cohort; the id never leaves"}
    uses: dict[str, list[str]] = {concept: [] for concept in data.concepts}
    cohort = data.cohort
    named: list[tuple[str, tuple[str, ...]]] = [("the index event", cohort.index.concepts)]
    named += [("inclusion", one.concepts) for one in cohort.include]
    named += [("exclusion", one.concepts) for one in cohort.exclude]
    for feature in data.features:
        if isinstance(feature, Measured):
            how = f"{feature.name}: {feature.aggregation} in {feature.unit} before the index"
            named.append((how, feature.concepts))
        elif isinstance(feature, Present):
            named.append((f"{feature.name}: whether there before the index", feature.concepts))
    named.append(("the outcome after the index", data.outcome.concepts))
    for how, concepts in named:
        for concept in concepts:
            uses[concept].append(how)
    for concept, found in uses.items():
        yield {"name": concept, "use": "; ".join(found) or "length of follow-up"}


def _leaves(study: StudySpec) -> Iterator[dict[str, Any]]:
    """Every kind of message with results: what it is, how often, how large."""
    if isinstance(study.dp, DpSgd):
        shapes = study_shapes(study)
        numbers = sum(_size(shape) for shape in shapes.values())
        yield {
            "what": f"a model update with noise: {numbers} numbers (float32)",
            "times": study.rounds,
            "bytes_each": 4 * numbers,
            "tensors": {name: list(shape) for name, shape in shapes.items()},
        }
    for release in study.releases:
        if isinstance(release, EvaluationRelease):
            yield {
                "what": f"{release.counted}, with noise",
                "times": release.times,
            }
        elif isinstance(release, VariantRelease):
            yield {"what": f"{release.said}, with noise", "times": 1}
        elif isinstance(release, SiteHarmonisation):
            yield {
                "what": f"nothing by itself, but the updates depend on this site's location and "
                f"scale of {', '.join(release.columns)}, which are noised, charged and stay here",
                "times": 1,
            }
        elif isinstance(release, ColumnStatistics):
            yield {
                "what": f"{', '.join(release.statistics)} of {', '.join(release.columns)}, with "
                f"noise ({release.mechanism}); counts below {release.min_cell_size} stay here",
                "times": 1,
            }


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _privacy(settings: SiteSettings, policy: SitePolicy, study: StudySpec) -> dict[str, Any]:
    """Epsilon per patient of this study and of all studies with it; each with its delta."""
    reservation, view, limits = Reservation.of(study), site_ledger(settings), policy.limits
    others = [one for one in view.accounts if one.reservation.study != study.digest]
    with_it = StudyAccount(reservation=reservation, reserved_at="", charges=())
    afterwards = replace(view, accounts=(*others, with_it))
    event, delta = reservation.event, reservation.delta
    return {
        "unit": reservation.unit,
        "delta": delta,
        "epsilon_declared": reservation.epsilon,
        "epsilon_is": reservation.epsilon_is,
        "epsilon_admission": finite(epsilon_admission([event], delta=delta)),
        "epsilon_pld": finite(epsilon_pld(event, delta=delta)),
        "distributed_noise": collusion_facts(study),
        "reserved_already": len(others) < len(view.accounts),
        "total_afterwards": finite(
            epsilon_admission(
                [one.reservation.event for one in afterwards.accounts], delta=limits.delta
            )
        ),
        "share_afterwards": finite(filter_share(afterwards, limits=limits)),
        "total_delta": limits.delta,
        "max_epsilon_total": limits.max_epsilon_total,
    }


def _approved_before(settings: SiteSettings, study: StudySpec) -> StudySpec:
    """The version of the study that was approved last, other than this one."""
    history = policy_of(settings).standing.history()
    digests = [
        str(said.statement.facts["study"])
        for said in history
        if said.statement.kind == "study-approval"
        and said.statement.facts["study_id"] == study.id
        and said.statement.facts["study"] != study.digest
    ]
    known = {str(one.digest): one for _, one in read_studies(settings.studies_folder)}
    found = next((known[digest] for digest in reversed(digests) if digest in known), None)
    if found is None:
        raise ConfigError(
            f"study {study.id}: expected another version that this site approved, found "
            f"{'none' if not digests else 'only its digest, not its text'}"
        )
    return found


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a JSON value by dotted name; entries with an id or a name go by that."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        for number, inner in enumerate(value):
            name = inner.get("id") or inner.get("name") or number
            yield from _flat(inner, f"{prefix}[{name}]")
    else:
        yield prefix, value
