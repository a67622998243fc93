"""What a kind of task means in numbers: the loss of a record, its score, and its class.

Sites train with it, the coordinator's sandbox compares with it. A later kind of task registers its
own (`register_objective`).

Sources: Gensheimer and Narasimhan 2019 (discrete hazards); Holford 1980, Laird and Olivier 1981
(proportional hazards as a hazard that is constant within intervals; the network for the risk score
is DeepSurv's, Katzman et al. 2018).
"""

from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
import torch
from torch.nn import functional

from fedward_common.errors import ConfigError, ModelRefused
from fedward_common.models.adversarial_objective import AdversarialObjective
from fedward_common.models.answer_objectives import AnswersObjective
from fedward_common.models.image_objectives import (
    ClassesObjective,
    Labels,
    LabelTargets,
    OneClassTargets,
    SegmentationObjective,
)
from fedward_common.models.reconstruction_objective import ReconstructionObjective
from fedward_common.models.text_objectives import TaggingObjective
from fedward_common.study.drug_target import DrugTarget
from fedward_common.study.generation import Generation
from fedward_common.study.genotypes import GenotypeClassification, GenotypeRegression, Genotypes
from fedward_common.study.imaging import (
    ClassLabel,
    ImageClassification,
    ImageData,
    ImageMasks,
    ImageSegmentation,
)
from fedward_common.study.labelled_rows import LabelledRows, SeveralAnswers
from fedward_common.study.molecule import MoleculeProperty
from fedward_common.study.multimodal import MultimodalClassification, MultimodalData
from fedward_common.study.notes import (
    NotesData,
    RelationLabel,
    TagLabel,
    TextClassification,
    TextNer,
    TextRelations,
)
from fedward_common.study.profiles import ExpressionClassification
from fedward_common.study.reconstruction import Autoencoder
from fedward_common.study.registry import TaskSpec
from fedward_common.study.sequence import SequenceClassification
from fedward_common.study.spec import StudySpec
from fedward_common.study.survival import Survival
from fedward_common.study.tabular import NumberLabel, TabularClassification
from fedward_common.study.tasks import TabularRegression, TimeseriesClassification

_YEAR: Final = 365.25
_SOONEST: Final = 1e-3
"""Days. Labels nearer to 0 only occur in checks."""


class Objective(Protocol):
    """The part of a task that needs no data.

    A label that no data could have must not make a loss fail: checks try such labels.
    """

    def losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One loss for each record, shape [records].

        Raises:
            ModelRefused: outputs of a shape that the task does not have.
        """
        ...

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """One score in [0, 1] for each record, higher for the positive class."""
        ...

    def classes(self, labels: Labels) -> Labels:
        """What an evaluation by class counts: 1, 0, or NaN for a record that is in neither."""
        ...


class BinaryObjective:
    """One logit per record, binary cross-entropy, scores between 0 and 1.

    `weights` are those of no and yes, public constants of the study.
    """

    def __init__(self, weights: tuple[float, ...] = ()) -> None:
        self._weights = weights

    def losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The binary cross-entropy of each record, shape [records].

        Raises:
            ModelRefused: the model's output is not one logit for each record; [records, 1] is
                refused and not squeezed, because it would broadcast against the labels.
        """
        _require_one_each(outputs, labels, what="logit")
        plain = functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
        if not self._weights:
            return plain
        no, yes = self._weights
        return plain * torch.where(labels > 0, yes, no)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """The predicted probability of the positive class of each record, in [0, 1]."""
        return torch.sigmoid(outputs)

    def classes(self, labels: Labels) -> Labels:
        """The labels as they are."""
        return labels


class ValueObjective:
    """One number per record on the scale of the label, [-1, 1]; half the squared error."""

    def losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Half the squared error of each record, shape [records].

        Raises:
            ModelRefused: the model's output is not one number for each record.
        """
        _require_one_each(outputs, labels, what="number")
        return 0.5 * (outputs - labels).square()

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """The prediction as a part of the label's range, in [0, 1]."""
        return ((outputs + 1.0) / 2.0).clamp(0.0, 1.0)

    def classes(self, labels: Labels) -> Labels:
        """No class for anybody."""
        return np.full_like(labels, np.nan)


class SurvivalObjective:
    """Outputs [records, intervals]; labels are days, negative without an event so far.

    Likelihoods with one term per patient, so that clipping binds them. Who is followed beyond the
    last cut counts as followed to there.
    """

    def __init__(self, spec: Survival) -> None:
        self._spec = spec
        self._ends = torch.tensor(spec.cuts, dtype=torch.float32)
        self._starts = torch.cat([torch.zeros(1), self._ends[:-1]])

    def losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The negative log-likelihood of each record, shape [records].

        Raises:
            ModelRefused: the output is not one number for each interval of each record.
        """
        expected = (*labels.shape, len(self._ends))
        if outputs.shape != expected:
            raise ModelRefused(
                f"output layer: expected one number for each interval, shape {list(expected)}, "
                f"found {list(outputs.shape)}"
            )
        ends, starts = self._ends.to(outputs.device), self._starts.to(outputs.device)
        days = labels.abs().clamp(min=_SOONEST).unsqueeze(-1)
        inside = torch.logical_and(days > starts, days <= ends)
        event = torch.logical_and((labels > 0).unsqueeze(-1), inside)
        if self._spec.likelihood == "discrete-hazard":
            # An interval is survived when its end was seen; censored inside, it says nothing.
            survived = torch.logical_and(days >= ends, torch.logical_not(event))
            terms = survived * functional.softplus(outputs) + event * functional.softplus(-outputs)
        else:
            at_risk = (torch.minimum(days, ends) - starts).clamp(min=0.0) / _YEAR
            terms = at_risk * outputs.exp() - event * outputs
        return terms.sum(dim=-1)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """The predicted chance of the event by the horizon, in [0, 1]."""
        return event_chance(outputs, self._spec)

    def classes(self, labels: Labels) -> Labels:
        """1: the event by the horizon; 0: followed beyond it without; NaN: lost before."""
        horizon = self._spec.horizon_days
        early = np.where(labels > 0, np.float32(1.0), np.float32(np.nan))
        return np.where(np.abs(labels) >= horizon, np.float32(labels == horizon), early).astype(
            np.float32
        )


def event_chance(outputs: torch.Tensor, spec: Survival) -> torch.Tensor:
    """The chance of the event by the horizon from `outputs` [records, intervals], in [0, 1]."""
    cuts = [cut for cut in spec.cuts if cut <= spec.horizon_days]
    until = outputs[:, : len(cuts)]
    if spec.likelihood == "discrete-hazard":
        log_survival = -functional.softplus(until).sum(dim=-1)
    else:
        lengths = torch.diff(torch.tensor([0.0, *cuts])).to(outputs) / _YEAR
        log_survival = -(lengths * until.exp()).sum(dim=-1)
    return -torch.expm1(log_survival)


def _require_one_each(outputs: torch.Tensor, labels: torch.Tensor, *, what: str) -> None:
    if outputs.shape != labels.shape:
        raise ModelRefused(
            f"output layer: expected one {what} for each record, shape {list(labels.shape)}, "
            f"found {list(outputs.shape)}; end the model with squeeze(-1)"
        )


_OBJECTIVES: Final[dict[type[TaskSpec], Callable[[StudySpec], Objective]]] = {}


def register_objective(task: type[TaskSpec], make: Callable[[StudySpec], Objective]) -> None:
    """Makes `make` the objective of studies whose task is a `task`. Raises ValueError if taken."""
    if task in _OBJECTIVES:
        raise ValueError(f"objective of {task.__name__}: expected one that is not taken")
    _OBJECTIVES[task] = make


def objective_of(study: StudySpec) -> Objective:
    """The objective of a study's task.

    Raises:
        ConfigError: nothing is known of this kind of task here.
    """
    task = study.task
    make = _OBJECTIVES.get(type(task))
    if make is None:
        known = sorted(str(kind.model_fields["kind"].default) for kind in _OBJECTIVES)
        raise ConfigError(f"task.kind: expected one of {', '.join(known)}, found {task.kind!r}")
    return make(study)


def _survival(study: StudySpec) -> Objective:
    if not isinstance(study.task, Survival):
        raise ConfigError(f"task.kind: expected survival, found {study.task.kind!r}")
    return SurvivalObjective(study.task)


def _classes(study: StudySpec) -> Objective:
    task, data = study.task, study.data
    learned = ImageClassification | GenotypeClassification | MultimodalClassification
    if not isinstance(task, learned) or not isinstance(
        data, ImageData | Genotypes | MultimodalData
    ):
        raise ConfigError(
            f"data.kind: expected image, genotypes or multimodal, found {data.kind!r}"
        )
    if data.outputs == 1:
        return BinaryObjective(task.class_weights)
    kind = OneClassTargets if isinstance(data.label, ClassLabel) else LabelTargets
    return ClassesObjective(kind(data.outputs), classes=data.outputs, weights=task.class_weights)


def _row_classes(study: StudySpec) -> Objective:
    data = study.data
    if not isinstance(data, LabelledRows):
        raise ConfigError(f"data.kind: expected labelled rows, found {data.kind!r}")
    weights = tuple(getattr(study.task, "class_weights", ()))
    if isinstance(data.label, ClassLabel):
        targets = OneClassTargets(data.outputs)
        return ClassesObjective(targets, classes=data.outputs, weights=weights)
    if isinstance(data.label, SeveralAnswers):
        return AnswersObjective(data.outputs, weights)
    return ValueObjective() if isinstance(data.label, NumberLabel) else BinaryObjective(weights)


def _segmentation(study: StudySpec) -> Objective:
    task, data = study.task, study.data
    if not isinstance(task, ImageSegmentation) or not isinstance(data, ImageMasks):
        raise ConfigError(f"data.kind: expected image-masks, found {data.kind!r}")
    return SegmentationObjective(task, data)


def _tagging(study: StudySpec) -> Objective:
    data = study.data
    if not isinstance(data, NotesData) or not isinstance(data.label, TagLabel):
        raise ConfigError(f"data.kind: expected notes with tags, found {data.kind!r}")
    return TaggingObjective(data.label)


def _relations(study: StudySpec) -> Objective:
    task, data = study.task, study.data
    if (
        not isinstance(task, TextRelations)
        or not isinstance(data, NotesData)
        or not isinstance(data.label, RelationLabel)
    ):
        raise ConfigError(f"data.kind: expected notes with relations, found {data.kind!r}")
    targets = OneClassTargets(data.outputs)
    return ClassesObjective(targets, classes=data.outputs, weights=task.class_weights)


for _binary in (TabularClassification, TimeseriesClassification, TextClassification):
    register_objective(_binary, lambda _: BinaryObjective())
for _number in (TabularRegression, GenotypeRegression, DrugTarget):
    register_objective(_number, lambda _: ValueObjective())
register_objective(Survival, _survival)
for _classified in (ImageClassification, GenotypeClassification, MultimodalClassification):
    register_objective(_classified, _classes)
register_objective(ImageSegmentation, _segmentation)
register_objective(TextNer, _tagging)
register_objective(TextRelations, _relations)
register_objective(Autoencoder, ReconstructionObjective)
register_objective(Generation, lambda study: AdversarialObjective(study.model.outputs))
for _rows in (SequenceClassification, MoleculeProperty, ExpressionClassification):
    register_objective(_rows, _row_classes)
