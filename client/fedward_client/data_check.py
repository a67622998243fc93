"""What a study would find in this site's data: for the site's own people, before anything runs.

Nothing is sent or charged. Numbers of patients below the site's minimum cell size are withheld in
the report as in the summary, so that a page that is passed on does not single anybody out.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy as np

from fedward_client.data.fhir_schema import SchemaFindings
from fedward_client.data.site import SAMPLE_EVERY, SiteSource, fhir_resources
from fedward_client.settings import SiteSettings
from fedward_common.errors import DataError, ProtocolError
from fedward_common.genotypes.alignment import Why
from fedward_common.notes.recall import NOTES, measured_recall
from fedward_common.study.clinical import ClinicalData, Feature, Measured, Present
from fedward_common.study.clinical_encoding import Encoder, Tally
from fedward_common.study.drug_target import DrugTargetData
from fedward_common.study.encoding import code_text, code_texts, decimal_number, encode_present
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.labelled_rows import LabelledRows, SeveralAnswers
from fedward_common.study.multimodal import MultimodalData, parts_of
from fedward_common.study.notes import NotesData
from fedward_common.study.profile_encoding import LayerReader
from fedward_common.study.profiles import ProfileData
from fedward_common.study.row_encoding import MISSING, cell
from fedward_common.study.sequence import AMBIGUOUS, Letters
from fedward_common.study.sequence_encoding import Fasta, sequence_text
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.tabular import CategoryColumn, NumberColumn, TabularData

FORMAT: Final = "fedward-data-report/1"
SUMMARY: Final = "fedward-data-summary/1"
BINS: Final = 20
ROUND_TO: Final = 10
MOST_PROBLEMS: Final = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureFound:
    """What was found of one feature: numbers of patients, and of single values.

    `outside`: values outside the allowed range, or beyond the limits they are clipped to.
    `unmapped`: values in a unit or code that cannot be mapped, or that are no numbers.
    """

    name: str
    unit: str
    patients: int
    outside: int
    unmapped: int
    low: float = 0.0
    high: float = 1.0
    values: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFound:
    """What was found: everybody, who is in the study, why others are not, and per feature."""

    people: int
    training: int
    held_out: int
    absent: Mapping[str, int]
    features: Sequence[FeatureFound]

    @property
    def cohort(self) -> int:
        """Everybody in the study."""
        return self.training + self.held_out


def check_data(study: StudySpec, source: SiteSource) -> DataFound:
    """What `source` has for `study`, exactly; it stays here.

    Raises:
        DataError: the site's data cannot be read. ProtocolError: a study without records.
    """
    if isinstance(study.data, ClinicalData):
        return _clinical(study.data, source)
    if isinstance(study.data, TabularData):
        return _tabular(study, study.data, source)
    if isinstance(study.data, NotesData):
        return _notes(study, study.data, source)
    if isinstance(study.data, LabelledRows):
        return _labelled(study, study.data, source)
    if isinstance(study.data, Genotypes):
        return _genotypes(study, source)
    if isinstance(study.data, MultimodalData):
        return _whole(study, source)
    raise ProtocolError(
        "data: expected a table, clinical events, notes, sequences, molecules or genotypes, "
        f"found {study.data.kind!r}"
    )


def data_report(
    study: StudySpec, site: str, found: DataFound, *, min_cell_size: int
) -> dict[str, Any]:
    """The report as a JSON value, numbers of patients below `min_cell_size` withheld (None)."""

    def patients(count: int) -> int | None:
        return count if count == 0 or count >= min_cell_size else None

    return {
        "format": FORMAT,
        "site": site,
        "study": study.id,
        "digest": study.digest,
        "min_cell_size": min_cell_size,
        "patients": patients(found.people),
        "cohort": patients(found.cohort),
        "training": patients(found.training),
        "held_out": patients(found.held_out),
        "not_in_study": {reason: patients(count) for reason, count in found.absent.items()},
        "features": [
            {
                "name": feature.name,
                "unit": feature.unit,
                "patients": patients(feature.patients),
                "missing": patients(found.cohort - feature.patients),
                "values_out_of_range": feature.outside,
                "values_unmapped": feature.unmapped,
                "histogram": histogram(feature, min_cell_size=min_cell_size),
            }
            for feature in found.features
        ],
    }


def check_form(
    study: StudySpec, settings: SiteSettings, *, whole: bool, min_cell_size: int
) -> dict[str, Any]:
    """What is known of the form of the site's records, for the report.

    Of notes, `scrubbing`: the recall of the recognisers on made-up notes. Of FHIR, `fhir_schema`:
    how many resources are not as R4 4.0.1 says, and in what; such a resource may all the same be
    readable, which `check_data` counts.

    Raises:
        DataError: the source cannot be read.
    """
    if isinstance(study.data, NotesData):
        found = measured_recall()
        return {
            "scrubbing": {
                "notes": NOTES,
                "recall": {kind: round(one.share, 4) for kind, one in sorted(found.items())},
            }
        }
    findings = SchemaFindings()
    for part in parts_of(study.data):
        concepts = part.concepts if isinstance(part, ClinicalData) else ()
        for resource in fhir_resources(settings, concepts, whole=whole) if concepts else ():
            findings.look_at(resource)
    if not findings.resources:
        return {}

    def shown(count: int) -> int | None:
        return count if count == 0 or count >= min_cell_size else None

    return {
        "fhir_schema": {
            "schema": "FHIR R4 4.0.1",
            "every": 1 if whole else SAMPLE_EVERY,
            "resources": shown(findings.resources),
            "unfit": shown(findings.unfit),
            "problems": [
                {"type": kind, "path": path, "expected": expected, "resources": shown(count)}
                for (kind, path, expected), count in findings.problems.most_common(MOST_PROBLEMS)
            ],
        }
    }


def data_summary(
    study: StudySpec, site: str, found: DataFound, *, min_cell_size: int
) -> dict[str, Any]:
    """What the site may choose to send: numbers of patients, rounded to tens, small ones withheld.

    Rounded numbers are no differentially private release: no epsilon covers them. Whoever sends
    them decides that for the hospital.
    """

    def rounded(count: int) -> int | None:
        return round(count / ROUND_TO) * ROUND_TO if count >= min_cell_size else None

    return {
        "format": SUMMARY,
        "note": "rounded, not differentially private; sent by the hospital's own decision",
        "site": site,
        "study": study.id,
        "digest": study.digest,
        "min_cell_size": min_cell_size,
        "rounded_to": ROUND_TO,
        "cohort": rounded(found.cohort),
        "patients_with": {feature.name: rounded(feature.patients) for feature in found.features},
    }


def histogram(feature: FeatureFound, *, min_cell_size: int) -> list[int | None]:
    """How many values are in each of 20 equal parts of the feature's range; None: too few."""
    if not feature.values:
        return []
    counts, _ = np.histogram(
        np.clip(feature.values, feature.low, feature.high),
        bins=BINS,
        range=(feature.low, feature.high),
    )
    return [int(n) if n == 0 or n >= min_cell_size else None for n in counts]


def _clinical(schema: ClinicalData, source: SiteSource) -> DataFound:
    people, tally = source.clinical.people(schema), Tally()
    encoder = Encoder(schema)
    everyone = encoder.encode(people, part=None, tally=tally)
    held_out = encoder.encode(people, part="test").patients
    return DataFound(
        people=tally.people,
        training=everyone.patients - held_out,
        held_out=held_out,
        absent=dict(tally.why_absent),
        features=[_feature(feature, tally) for feature in schema.features],
    )


def _feature(feature: Feature, tally: Tally) -> FeatureFound:
    name = feature.name
    low, high = getattr(feature, "low", 0.0), getattr(feature, "high", 1.0)
    with_it = tally.patients_with[name]
    if isinstance(feature, Present):  # everybody has an answer; how many have the diagnosis
        with_it = sum(value == 1.0 for value in tally.values.get(name, ()))
    return FeatureFound(
        name=name,
        unit=feature.unit if isinstance(feature, Measured) else feature.type,
        patients=with_it,
        outside=tally.outside[name] + tally.clipped[name],
        unmapped=tally.unconverted[name],
        low=low,
        high=high,
        values=tuple(tally.values.get(name, ())),
    )


def _notes(study: StudySpec, schema: NotesData, source: SiteSource) -> DataFound:
    training, held_out, tally = source.notes.tally(study)
    patients = training.patients + held_out.patients
    most = schema.tokeniser.max_tokens
    length = FeatureFound(
        name="words",
        unit=f"a text; cut off beyond {most} tokens",
        patients=patients,
        outside=tally.cut,
        unmapped=0,
        low=0.0,
        high=float(max([most, *tally.words])),
        values=tuple(map(float, tally.words)),
    )
    taken_out = [
        FeatureFound(
            name=f"taken out: {kind}",
            unit="places",
            patients=patients,
            outside=0,
            unmapped=0,
            values=(),
        )
        for kind in sorted(tally.scrubbed)
    ]
    return DataFound(
        people=patients + tally.absent,
        training=training.patients,
        held_out=held_out.patients,
        absent={"rows that do not fit": tally.absent},
        features=[length, *taken_out],
    )


def _labelled(study: StudySpec, schema: LabelledRows, source: SiteSource) -> DataFound:
    rows = source.labelled.rows(study)
    training, absent = source.labelled.encoded(study, part="train", strict=False)
    held_out, _ = source.labelled.encoded(study, part="test", strict=False)
    features: Sequence[FeatureFound] = ()
    letters = schema.protein if isinstance(schema, DrugTargetData) else schema
    if isinstance(letters, Letters):
        features = _sequences(schema, letters, rows, source.labelled.fasta(study))
    elif isinstance(schema, ProfileData):
        features = _layers(schema, rows, source.labelled.layers(study))
    elif isinstance(schema.label, SeveralAnswers):
        features = [_measured(schema, name, rows) for name in schema.label.answers]
    return DataFound(
        people=_people(schema, rows),
        training=training.patients,
        held_out=held_out.patients,
        absent={"rows that do not fit": absent},
        features=features,
    )


def _measured(schema: LabelledRows, name: str, rows: Sequence[Mapping[str, str]]) -> FeatureFound:
    """How many rows have an answer, and which."""
    found = [(row, cell(row, name)) for row in rows if cell(row, name) not in MISSING]
    known = [float(code_text(text)) for _, text in found if code_text(text) in ("0", "1")]
    return FeatureFound(
        name=name,
        unit="measured answers",
        patients=_people(schema, [row for row, _ in found]),
        outside=0,
        unmapped=len(found) - len(known),
        values=tuple(known),
    )


def _people(schema: LabelledRows, rows: Sequence[Mapping[str, str]]) -> int:
    key, alone = schema.patient_key, schema.no_patient_key
    return len(rows) if alone else len({cell(row, key) for row in rows})


def _layers(
    schema: ProfileData, rows: Sequence[Mapping[str, str]], layers: Sequence[LayerReader]
) -> list[FeatureFound]:
    """For each layer how many patients it has, and how many of them are not on its scale."""
    patients = {cell(row, schema.patient_key) for row in rows}
    found = []
    for layer in layers:
        there, unfit = 0, 0
        values: list[float] = []
        for patient in sorted(patients):
            try:
                inputs = layer.inputs(patient)
            except DataError:
                unfit += layer.has(patient)
                continue
            there += layer.has(patient)
            values.append(float(inputs.mean()))
        spec = layer.layer
        found.append(
            FeatureFound(
                name=spec.name,
                unit=f"{len(spec.genes)} genes, {spec.scale}; a patient's mean, scaled",
                patients=there,
                outside=0,
                unmapped=unfit,
                low=-1.0,
                high=1.0,
                values=tuple(values),
            )
        )
    return found


def _sequences(
    data: LabelledRows,
    schema: Letters,
    rows: Sequence[Mapping[str, str]],
    fasta: Fasta | None,
) -> list[FeatureFound]:
    """Lengths, and how many letters of each sequence stand for several or for none."""
    found = [sequence_text(schema, row, fasta) for row in rows]
    texts = [(row, text) for row, text in zip(rows, found, strict=True) if text]
    codes = set(AMBIGUOUS[schema.alphabet])
    unclear = [sum(letter in codes for letter in text.upper()) for _, text in texts]
    unknown = [len(set(text.upper()) - codes - set(schema.letters)) > 0 for _, text in texts]
    lengths = [float(len(text)) for _, text in texts]
    return [
        FeatureFound(
            name="letters",
            unit=f"a sequence; the study takes {schema.length}",
            patients=_people(data, [row for row, _ in texts]),
            outside=sum(length != schema.length for length in lengths),
            unmapped=sum(unknown),
            low=0.0,
            high=max([float(schema.length), *lengths]),
            values=tuple(lengths),
        ),
        FeatureFound(
            name="ambiguous letters",
            unit=f"a sequence; {schema.ambiguous}",
            patients=_people(data, [row for row, _ in texts]),
            outside=0,
            unmapped=0,
            low=0.0,
            high=max([1.0, *map(float, unclear)]),
            values=tuple(map(float, unclear)),
        ),
    ]


def _genotypes(study: StudySpec, source: SiteSource) -> DataFound:
    """Loci by how they were found, and how complete they are; of each locus nothing by itself."""
    training, held_out, tally = source.genotypes.tally(study)
    rates = tuple(tally.rates.values())
    complete = FeatureFound(
        name="genotypes",
        unit="share of the file's samples that have one, by locus",
        patients=len(training.labels) + len(held_out.labels),
        outside=0,
        unmapped=0,
        values=rates,
    )
    found = [
        FeatureFound(
            name=f"loci {how}",
            unit=f"{number} loci",
            patients=complete.patients,
            outside=0,
            unmapped=number if how in get_args(Why) else 0,
        )
        for how, number in sorted(tally.loci.items())
    ]
    return DataFound(
        people=tally.people,
        training=len(training.labels),
        held_out=len(held_out.labels),
        absent=dict(tally.absent),
        features=[complete, *found],
    )


def _whole(study: StudySpec, source: SiteSource) -> DataFound:
    """Of each modality, how many patients of the study have it; nothing else of it."""
    training, held_out = (source.tally(study, part=part) for part in ("train", "test"))
    return DataFound(
        people=training.people + held_out.people + training.torn,
        training=training.patients,
        held_out=held_out.patients,
        absent=training.absent(held_out),
        features=[
            FeatureFound(
                name=one.name,
                unit="one modality" if one.here else "absent here, as site.toml says",
                patients=one.joined + other.joined,
                outside=0,
                unmapped=0,
            )
            for one, other in zip(training.modalities, held_out.modalities, strict=True)
        ],
    )


def _tabular(study: StudySpec, schema: TabularData, source: SiteSource) -> DataFound:
    rows = source.tables.rows(study)
    single = isinstance(study.dp, DpSgd) and study.dp.max_records_per_patient == 1
    sizes = {}
    for part in ("train", "test"):
        records, absent = encode_present(schema, rows, part=part, one_record_per_patient=single)
        sizes[part] = records.patients
    people = {row[schema.patient_key] for row in rows}
    incomplete = len(people) - absent - sum(sizes.values())
    return DataFound(
        people=len(people),
        training=sizes["train"],
        held_out=sizes["test"],
        absent={"rows that do not fit": absent, "incomplete or without label": incomplete},
        features=[_column(schema, column, rows) for column in schema.columns],
    )


def _column(
    schema: TabularData, column: NumberColumn | CategoryColumn, rows: Sequence[Mapping[str, str]]
) -> FeatureFound:
    missing = code_texts((*schema.missing_codes, *column.missing_codes))
    patients: set[str] = set()
    counts: Counter[str] = Counter()
    values: list[float] = []
    codes = {code_text(value): number for number, value in enumerate(getattr(column, "values", ()))}
    for row in rows:
        text = row[column.name]
        if code_text(text) in missing:
            continue
        number = (
            decimal_number(text)
            if isinstance(column, NumberColumn)
            else codes.get(code_text(text), math.nan)
        )
        if number is None or math.isnan(number):
            counts["unmapped"] += 1
            continue
        patients.add(row[schema.patient_key])
        values.append(float(number))
        if isinstance(column, NumberColumn):
            counts["outside"] += not column.low <= number <= column.high
    low, high = (
        (column.low, column.high) if isinstance(column, NumberColumn) else (0.0, len(codes) - 1.0)
    )
    return FeatureFound(
        name=column.name,
        unit=column.unit if isinstance(column, NumberColumn) else f"{len(codes)} codes",
        patients=len(patients),
        outside=counts["outside"],
        unmapped=counts["unmapped"],
        low=low,
        high=high,
        values=tuple(values),
    )
