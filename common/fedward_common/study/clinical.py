"""The clinical variant of a study's data: features, cohort and outcome in clinical terms.

A study says once what it needs: concept codes, units, windows around an index event. Each site maps
its own source (tables of events, FHIR, OMOP) to the same clinical events, and from there one
computation leads to tensors (`clinical_encoding`), so that sources that say the same give the same.

No feature can see the future by construction: the windows of features and of the cohort end at the
index time at the latest, and only what stands under `outcome` looks after it.
"""

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from fedward_common.study.registry import DataSpec, Extensible, Strict, register
from fedward_common.study.tabular import HashSplit, Name

SYSTEMS: Final = ("LOINC", "SNOMED", "ICD10", "ICD10CM", "ATC", "RxNorm", "CVX", "OMOP", "Local")
CONCEPT: Final = rf"^({'|'.join(SYSTEMS)}):[A-Za-z0-9][A-Za-z0-9._/-]{{0,63}}$"

ConceptCode = Annotated[str, Field(pattern=CONCEPT)]
Concepts = Annotated[tuple[ConceptCode, ...], Field(min_length=1, max_length=256, strict=False)]
Days = Annotated[float, Field(ge=-40_000, le=40_000, allow_inf_nan=False)]
Unit = Annotated[str, Field(min_length=1, max_length=32)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Before(Strict):
    """Days around the index time, both ends included; it ends at the index time at the latest."""

    from_days: Days
    to_days: Annotated[float, Field(ge=-40_000, le=0)] = 0.0

    @model_validator(mode="after")
    def _ordered(self) -> "Before":
        if not self.from_days < self.to_days:
            raise ValueError(
                f"expected from_days < to_days, found {self.from_days} and {self.to_days}"
            )
        return self


class After(Strict):
    """Days after the index time: the first end excluded, the last included."""

    from_days: Annotated[float, Field(ge=0, le=40_000)] = 0.0
    to_days: Days

    @model_validator(mode="after")
    def _ordered(self) -> "After":
        if not self.from_days < self.to_days:
            raise ValueError(
                f"expected from_days < to_days, found {self.from_days} and {self.to_days}"
            )
        return self


class _Ranged(Extensible):
    """`low` and `high` are public limits: what lies outside is clipped, the range becomes [-1, 1].

    A missing value drops the patient, takes the public `fill`, or takes it and sets one more input
    to 1 (`indicator`).
    """

    name: Name
    low: Finite
    high: Finite
    missing: Literal["drop", "fill", "indicator"] = "drop"
    fill: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _range(self) -> "_Ranged":
        if not self.low < self.high or not 2.0 * (self.high - self.low) < float("inf"):
            raise ValueError(f"expected low < high, found {self.low} and {self.high}")
        if (self.missing == "drop") != (self.fill is None):
            raise ValueError("fill: expected a public value exactly where missing is not 'drop'")
        if self.fill is not None and not self.low <= self.fill <= self.high:
            raise ValueError(f"expected fill between low and high, found {self.fill}")
        return self

    @property
    def width(self) -> int:
        """How many inputs it becomes."""
        return 2 if self.missing == "indicator" else 1


class Measured(_Ranged):
    """Values of some concepts in one window, as one number or as a sequence.

    `unit` is a UCUM code; values in other units are converted, and a value whose unit cannot be
    converted counts as not there. `molar_mass` (g/mol) bridges mass and substance. Single values
    outside `allowed` are implausible and count as not there. `slope` is per day, by least squares.
    A `sequence` has one mean per step of the study's `grid`; a step without a value holds `fill`,
    and a second input says with 1 that it is observed.
    """

    type: Literal["measured"] = "measured"
    concepts: Concepts
    unit: Unit
    molar_mass: float | None = Field(default=None, gt=0, le=1e6)
    window: Before | None = None
    aggregation: Literal["last", "first", "mean", "min", "max", "count", "slope", "sequence"]
    allowed: tuple[Finite, Finite] | None = Field(default=None, strict=False)

    @model_validator(mode="after")
    def _consistent(self) -> "Measured":
        if (self.aggregation == "sequence") != (self.window is None):
            raise ValueError("window: expected one, unless aggregation is sequence (the grid's)")
        if self.aggregation == "sequence" and self.missing != "fill":
            raise ValueError("missing: expected 'fill' with a sequence; a mask says what is there")
        if self.allowed is not None and not self.allowed[0] < self.allowed[1]:
            raise ValueError("allowed: expected two numbers in order")
        return self

    @property
    def width(self) -> int:
        """How many inputs it becomes; in a sequence, at each step: value and mask."""
        return 2 if self.aggregation == "sequence" or self.missing == "indicator" else 1


class Present(Extensible):
    """1 where any of the concepts was recorded in the window, 0 otherwise."""

    type: Literal["present"] = "present"
    name: Name
    concepts: Concepts
    window: Before

    @property
    def width(self) -> int:
        """How many inputs it becomes."""
        return 1


class Age(_Ranged):
    """The age at the index time in years of 365.25 days."""

    type: Literal["age"] = "age"


class Sex(Extensible):
    """Administrative sex: two inputs, female and male; both 0 where it is neither or unknown."""

    type: Literal["sex"] = "sex"
    name: Name = "sex"

    @property
    def width(self) -> int:
        """How many inputs it becomes."""
        return 2


Feature = Annotated[Measured | Present | Age | Sex, Field(discriminator="type")]


class Grid(Strict):
    """The steps of sequences: `steps` of `step_hours` each, the last one ends at the index time."""

    step_hours: float = Field(gt=0, le=24 * 366)
    steps: int = Field(ge=2, le=1024)


class IndexEvent(Strict):
    """The time everything else is relative to: the first event of these concepts plus `plus_days`.

    There is no "last" one: that no other follows is only known later.
    """

    concepts: Concepts
    plus_days: Annotated[float, Field(ge=0, le=3660)] = 0.0


class Criterion(Strict):
    """Holds where the concepts were recorded at least so often in a window before the index."""

    concepts: Concepts
    window: Before
    at_least: int = Field(default=1, ge=1, le=1000)


class Cohort(Extensible):
    """Who is in the study: has the index event, the ages, every inclusion and no exclusion."""

    index: IndexEvent
    include: tuple[Criterion, ...] = Field(default=(), max_length=64, strict=False)
    exclude: tuple[Criterion, ...] = Field(default=(), max_length=64, strict=False)
    min_age: float | None = Field(default=None, ge=0, le=130)
    max_age: float | None = Field(default=None, ge=0, le=130)


class EventOutcome(Strict):
    """Positive where any of the concepts (or `death`) falls into the window after the index.

    With `excluded_before` a patient who had it up to the index time is not in the study.
    """

    kind: Literal["event"] = "event"
    concepts: tuple[ConceptCode, ...] = Field(default=(), max_length=256, strict=False)
    death: bool = False
    window: After
    excluded_before: bool = True

    @model_validator(mode="after")
    def _something(self) -> "EventOutcome":
        if not self.concepts and not self.death:
            raise ValueError("expected concepts, or death = true")
        return self


class ValueOutcome(Strict):
    """A number measured in the window after the index, from [low, high] to [-1, 1]."""

    kind: Literal["value"] = "value"
    concepts: Concepts
    unit: Unit
    molar_mass: float | None = Field(default=None, gt=0, le=1e6)
    window: After
    aggregation: Literal["last", "first", "mean", "min", "max"]
    low: Finite
    high: Finite

    @model_validator(mode="after")
    def _ordered(self) -> "ValueOutcome":
        if not self.low < self.high:
            raise ValueError(f"expected low < high, found {self.low} and {self.high}")
        return self


class TimeOutcome(Strict):
    """Days to the first event after the index; without one, censored at the patient's last record
    (of any concept that the study names) or at the end of the window, whichever is earlier.
    """

    kind: Literal["time-to-event"] = "time-to-event"
    concepts: tuple[ConceptCode, ...] = Field(default=(), max_length=256, strict=False)
    death: bool = False
    follow_up: tuple[ConceptCode, ...] = Field(default=(), max_length=256, strict=False)
    window: After

    @model_validator(mode="after")
    def _something(self) -> "TimeOutcome":
        if not self.concepts and not self.death:
            raise ValueError("expected concepts, or death = true")
        return self


class NoOutcome(Strict):
    """Nothing: features of patients whose label is in another modality."""

    kind: Literal["none"] = "none"

    @property
    def concepts(self) -> tuple[str, ...]:
        """None."""
        return ()


Outcome = Annotated[
    EventOutcome | ValueOutcome | TimeOutcome | NoOutcome, Field(discriminator="kind")
]


@register
class ClinicalData(DataSpec):
    """Features, cohort and outcome in clinical terms; one record per patient."""

    kind: Literal["clinical"] = "clinical"
    cohort: Cohort
    features: tuple[Feature, ...] = Field(min_length=1, max_length=1024, strict=False)
    grid: Grid | None = None
    outcome: Outcome
    split: HashSplit

    @property
    def sequences(self) -> tuple[Measured, ...]:
        """The features that are sequences."""
        return tuple(
            f for f in self.features if isinstance(f, Measured) and f.aggregation == "sequence"
        )

    @property
    def static(self) -> tuple[Measured | Present | Age | Sex, ...]:
        """The features that are numbers at the index time."""
        return tuple(f for f in self.features if f not in self.sequences)

    @property
    def step_width(self) -> int:
        """Inputs of one step: with a grid, the static features stand in every step."""
        return sum(feature.width for feature in self.features)

    @property
    def input_size(self) -> int:
        """The number of inputs of a model."""
        return self.step_width * (1 if self.grid is None else self.grid.steps)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Every concept that the study reads, sorted."""
        found: set[str] = set(self.cohort.index.concepts)
        for criterion in (*self.cohort.include, *self.cohort.exclude):
            found.update(criterion.concepts)
        for feature in self.features:
            if isinstance(feature, Measured | Present):
                found.update(feature.concepts)
        found.update(self.outcome.concepts)
        if isinstance(self.outcome, TimeOutcome):
            found.update(self.outcome.follow_up)
        return tuple(sorted(found))

    @property
    def units(self) -> tuple[str, ...]:
        """Every unit that the study converts to."""
        found = {f.unit for f in self.features if isinstance(f, Measured)}
        if isinstance(self.outcome, ValueOutcome):
            found.add(self.outcome.unit)
        return tuple(sorted(found))

    @model_validator(mode="after")
    def _consistent(self) -> "ClinicalData":
        names = [feature.name for feature in self.features]
        if len(set(names)) != len(names):
            raise ValueError("features: expected every name once")
        if bool(self.sequences) != (self.grid is not None):
            raise ValueError("grid: expected one exactly where a feature is a sequence")
        if self.input_size > 65536:
            raise ValueError(f"features: expected at most 65536 inputs, found {self.input_size}")
        return self
