"""What may be learned besides one binary answer from a table, and what a model has to put out."""

from typing import Final, Literal

from fedward_common.errors import ConfigError
from fedward_common.study.clinical import (
    ClinicalData,
    EventOutcome,
    NoOutcome,
    TimeOutcome,
    ValueOutcome,
)
from fedward_common.study.drug_target import DrugTarget, DrugTargetData
from fedward_common.study.evaluation import (
    BinnedScores,
    ClassScores,
    OverlapScores,
    evaluation_of,
)
from fedward_common.study.generation import GAN, Generation, check_class_shares
from fedward_common.study.genotypes import (
    GenotypeClassification,
    GenotypeRegression,
    Genotypes,
)
from fedward_common.study.grouped_scores import GroupedScores, ValueScores, check_groupings
from fedward_common.study.harmonisation import harmonisation_of
from fedward_common.study.imaging import (
    ClassLabel,
    ImageClassification,
    ImageData,
    ImageMasks,
    ImageSegmentation,
)
from fedward_common.study.inputs import inputs_of
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.modality_encoders import check_modalities
from fedward_common.study.molecule import MoleculeData, MoleculeProperty
from fedward_common.study.multimodal import (
    MultimodalClassification,
    MultimodalData,
    parts_of,
)
from fedward_common.study.notes import (
    EntityScores,
    NotesData,
    RelationLabel,
    TagLabel,
    TextClassification,
    TextNer,
    TextRelations,
)
from fedward_common.study.profiles import ExpressionClassification, ProfileData
from fedward_common.study.reconstruction import Autoencoder, ErrorScores
from fedward_common.study.registry import DataSpec, TaskSpec, register
from fedward_common.study.sequence import (
    OneHot,
    SequenceClassification,
    SequenceData,
)
from fedward_common.study.spec import StudySpec
from fedward_common.study.survival import Survival, check_hazards
from fedward_common.study.tabular import (
    LabelRule,
    NumberLabel,
    TabularClassification,
    TabularData,
    TimeLabel,
)


@register
class TabularRegression(TaskSpec):
    """A number about a patient from one row: half the squared error on the scale [-1, 1]."""

    kind: Literal["tabular-regression"] = "tabular-regression"


@register
class TimeseriesClassification(TaskSpec):
    """A binary answer about a patient from a grid of values and masks."""

    kind: Literal["timeseries-classification"] = "timeseries-classification"


PAIR_MODELS: Final = frozenset({"relation-bilstm", "relation-transformer"})
TOKEN_MODELS: Final = frozenset({"bert", "bilstm", "text-transformer"})
KNOWN_TASKS: Final = (
    TabularClassification,
    TabularRegression,
    Survival,
    TimeseriesClassification,
    ImageClassification,
    ImageSegmentation,
    TextClassification,
    TextNer,
    TextRelations,
    SequenceClassification,
    GenotypeClassification,
    GenotypeRegression,
    MoleculeProperty,
    DrugTarget,
    ExpressionClassification,
    MultimodalClassification,
    Autoencoder,
    Generation,
)


def outputs_of(study: StudySpec) -> int:
    """How many numbers a model puts out for a record: for a pixel of a segmentation, for a word.

    1 of an autoencoder: what it puts out follows from its inputs. Of a gan: its classes.
    """
    data = study.data
    if isinstance(study.task, Generation):
        return max(1, len(study.task.class_shares))
    if isinstance(data, ImageMasks):
        return len(data.structures) + 1
    if isinstance(data, ImageData | Genotypes):
        return data.outputs
    if isinstance(study.task, Survival):
        return len(study.task.cuts)
    return data.outputs if isinstance(data, LabelledRows | MultimodalData | NotesData) else 1


def value_range(data: DataSpec) -> tuple[float, float]:
    """The lowest and the highest value of a measured label, in its unit.

    Raises:
        ConfigError: the label is none.
    """
    if isinstance(data, TabularData | LabelledRows | Genotypes) and isinstance(
        data.label, NumberLabel
    ):
        return data.label.low, data.label.high
    if isinstance(data, ClinicalData) and isinstance(data.outcome, ValueOutcome):
        return data.outcome.low, data.outcome.high
    raise ConfigError("data: expected a label that is a measured value, found another")


def is_regression(study: StudySpec) -> bool:
    """Whether a measured value is learned, which has no class."""
    data = study.data
    return isinstance(study.task, TabularRegression | GenotypeRegression) or (
        isinstance(data, LabelledRows) and isinstance(data.label, NumberLabel)
    )


def check_task(study: StudySpec) -> None:
    """Returns when task, label, model and releases of a study fit together.

    Raises:
        ConfigError: they do not, or this version knows no such task.
    """
    task, label = study.task, _label_kind(study)
    fitting: dict[type[TaskSpec], type[object]] = {
        TabularClassification: LabelRule,
        TimeseriesClassification: LabelRule,
        TabularRegression: NumberLabel,
        Survival: TimeLabel,
        ImageClassification: ImageData,
        ImageSegmentation: ImageMasks,
        TextClassification: LabelRule,
        TextNer: TagLabel,
        TextRelations: RelationLabel,
        SequenceClassification: SequenceData,
        GenotypeClassification: Genotypes,
        GenotypeRegression: NumberLabel,
        MoleculeProperty: MoleculeData,
        DrugTarget: DrugTargetData,
        ExpressionClassification: ProfileData,
        MultimodalClassification: MultimodalData,
        Autoencoder: type(None),
        Generation: type(None),
    }
    if type(task) not in fitting:
        raise ConfigError(f"task.kind: expected one that can be learned, found {task.kind!r}")
    if fitting[type(task)] is not label:
        raise ConfigError(f"task.kind: expected one that fits the label, found {task.kind!r}")
    if isinstance(study.data, SequenceData):
        _check_sequences(study, study.data)
    else:
        _check_steps(study)
    if isinstance(study.data, MoleculeData) and study.model.shape != study.data.encoding.shape:
        raise ConfigError(
            f"model.shape: expected {list(study.data.encoding.shape)}, as molecules have, found "
            f"{list(study.model.shape)}"
        )
    if study.model.outputs != outputs_of(study):
        raise ConfigError(
            f"model.outputs: expected {outputs_of(study)}, found {study.model.outputs}"
        )
    _check_classes(study)
    _check_notes(study)
    _check_genotypes(study)
    check_modalities(study)
    _check_autoencoder(study)
    _check_generation(study)
    check_hazards(study)
    _check_evaluation(study)
    harmonisation_of(study)
    _check_unlabelled(study)


def _check_unlabelled(study: StudySpec) -> None:
    """Returns when patients without a label are kept exactly where the recipe gives them one."""
    kept = any(isinstance(d, TabularData) and d.unlabelled == "keep" for d in parts_of(study.data))
    if kept and isinstance(study.data, MultimodalData):
        raise ConfigError("data.unlabelled: expected 'drop' with several modalities, found 'keep'")
    if (study.training.pseudo_labels is not None) != kept:
        raise ConfigError(
            "training.pseudo_labels: expected it exactly where a table has unlabelled = 'keep', "
            "found one without the other"
        )


def _check_steps(study: StudySpec) -> None:
    """Returns when a model of a time series has the steps of its grid, and another has none."""
    task = study.task
    grid = isinstance(study.data, ClinicalData) and study.data.grid is not None
    if isinstance(task, TimeseriesClassification) != bool(study.model.steps) or (
        isinstance(study.data, ClinicalData) and isinstance(task, TimeseriesClassification) != grid
    ):
        raise ConfigError("model.steps: expected the steps of the data's grid for a time series")
    if grid and isinstance(study.data, ClinicalData) and study.data.grid is not None:
        steps = study.data.grid.steps
        if study.model.steps != steps:
            raise ConfigError(f"model.steps: expected {steps}, found {study.model.steps}")
    if study.model.name == "gru-d":
        _check_masks(study)


def _check_masks(study: StudySpec) -> None:
    """Returns when every variable that GRU-D takes for one has a value and a mask at every step."""
    data = study.data
    variables = len(data.sequences) if isinstance(data, ClinicalData) else 0
    if study.model.shape != (variables,):
        raise ConfigError(
            f"model.shape: expected [{variables}] for gru-d, one for each feature that is a "
            f"sequence, found {list(study.model.shape)}"
        )


def _check_sequences(study: StudySpec, data: SequenceData) -> None:
    """Returns when the model takes sequences as the study encodes them."""
    steps, shape = study.model.steps, study.model.shape
    if isinstance(data.encoding, OneHot):
        expected: tuple[int, ...] = (len(data.letters), data.length)
        if shape not in ((), expected) or (steps and data.length % steps):
            raise ConfigError(
                f"model: expected steps that divide the {data.length} letters, or none, and shape "
                f"{list(expected)} or none, found steps {steps} and shape {list(shape)}"
            )
        return
    expected = (1, data.token_size)
    if shape != expected or steps:
        raise ConfigError(
            f"model.shape: expected {list(expected)} and no steps, as k-mers have, found "
            f"{list(shape)}; a model of tokens is sequence-transformer"
        )


def _check_evaluation(study: StudySpec) -> None:
    """Returns when the study's evaluation is one for its task."""
    release, regression = evaluation_of(study), is_regression(study)
    if release is None:
        return
    if isinstance(study.task, Generation):
        raise ConfigError(
            f"releases: expected no evaluation of the task generation, found {release.kind}; each "
            "hospital can hold synthetic rows against its own patients"
        )
    if isinstance(study.task, Autoencoder) != isinstance(release, ErrorScores):
        raise ConfigError("releases: expected error-scores of an autoencoder, and of nothing else")
    if regression != isinstance(release, ValueScores):
        raise ConfigError(
            "releases: expected value-scores of a regression, which has no class, and of nothing "
            f"else, found {release.kind}"
        )
    if isinstance(release, GroupedScores):
        check_groupings(study.data, release)


def _check_classes(study: StudySpec) -> None:
    """Returns when weights and evaluation fit the classes or structures that are learned."""
    task, data, release = study.task, study.data, evaluation_of(study)
    if isinstance(task, Autoencoder | Generation):
        return
    if (
        isinstance(data, ImageData | LabelledRows | Genotypes | MultimodalData)
        and not isinstance(data.label, NumberLabel | TimeLabel | TimeOutcome)
    ) or (isinstance(data, NotesData) and isinstance(data.label, RelationLabel)):
        expected = max(2, data.outputs)
        weights = getattr(task, "class_weights", ())
        if weights and len(weights) != expected:
            raise ConfigError(
                f"task.class_weights: expected {expected} or none, found {len(weights)}"
            )
        one = isinstance(data.label, LabelRule | EventOutcome)
        fits = isinstance(release, BinnedScores) if one else isinstance(release, ClassScores)
        if isinstance(release, ClassScores):
            exclusive = isinstance(data.label, ClassLabel | RelationLabel)
            fits &= (release.classes, release.exclusive) == (data.outputs, exclusive)
        wanted = "binned-scores" if one else f"class-scores of {data.outputs} classes"
    elif isinstance(data, ImageMasks):
        fits = isinstance(release, OverlapScores) and release.structures == len(data.structures)
        wanted = f"overlap-scores of {len(data.structures)} structures"
    else:
        fits, wanted = not isinstance(release, ClassScores | OverlapScores), "binned-scores"
    if release is not None and not fits:
        raise ConfigError(f"releases: expected {wanted}, found {release.kind}")


def _check_notes(study: StudySpec) -> None:
    """Returns when a study of notes has a model of notes of its tokeniser, and its evaluation."""
    task, data, release = study.task, study.data, evaluation_of(study)
    if isinstance(release, EntityScores) != (isinstance(task, TextNer) and release is not None):
        raise ConfigError("releases: expected entity-scores of text-ner, and of nothing else")
    learned = TextClassification | TextNer | TextRelations
    if isinstance(task, learned) != isinstance(data, NotesData):
        raise ConfigError(f"task.kind: expected one for {data.kind}, found {task.kind!r}")
    if isinstance(data, NotesData):
        shape, name = (data.tokeniser.ids, data.token_size), study.model.name
        if (name in PAIR_MODELS and not data.names) or (name in TOKEN_MODELS and data.names):
            raise ConfigError(
                f"model.name: expected one of {', '.join(sorted(PAIR_MODELS))} of text-relations, "
                f"and of nothing else, found {name!r} of {task.kind!r}"
            )
        if study.model.shape != shape:
            raise ConfigError(
                f"model.shape: expected {list(shape)}, as the tokeniser has, found "
                f"{list(study.model.shape)}"
            )


def _check_genotypes(study: StudySpec) -> None:
    """Returns when a study of genotypes has who is held out, and a convolution knows the loci."""
    data = study.data
    if isinstance(study.task, GenotypeClassification | GenotypeRegression) != isinstance(
        data, Genotypes
    ):
        raise ConfigError(f"task.kind: expected one for {data.kind}, found {study.task.kind!r}")
    if not isinstance(data, Genotypes):
        return
    if data.split is None:
        raise ConfigError("data.split: expected who is held out, found none")
    shape = (data.channels, len(data.loci))
    if study.model.name == "locus-cnn" and study.model.shape != shape:
        raise ConfigError(
            f"model.shape: expected {list(shape)} (numbers of a locus, loci), found "
            f"{list(study.model.shape)}"
        )


def _check_autoencoder(study: StudySpec) -> None:
    """Returns when autoencoders learn to make records again, and nothing else does."""
    name = study.model.name
    if isinstance(study.task, Autoencoder) != name.endswith("autoencoder"):
        raise ConfigError(
            "model.name: expected autoencoder or variational-autoencoder of the task autoencoder, "
            f"and of no other, found {name!r} of {study.task.kind!r}"
        )


def _check_generation(study: StudySpec) -> None:
    """Returns when a generator's records are of a table or grey images, its optimiser its own."""
    model, data = study.model, study.data
    if isinstance(study.task, Generation) != (model.name == GAN):
        raise ConfigError(
            "model.name: expected gan of the task generation, and of no other, found "
            f"{model.name!r} of {study.task.kind!r}"
        )
    if model.name != GAN:
        if model.categories:
            raise ConfigError(f"model.categories: expected none of {model.name}, found some")
        return
    flat = isinstance(data, ImageData) and not data.depth and data.channels == 1
    if not isinstance(data, TabularData) and not flat:
        raise ConfigError("data: expected a table or flat grey images for generation")
    check_class_shares(study.task, data)
    if model.categories != inputs_of(data).categories:
        raise ConfigError(
            "model.categories: expected those of the table's columns, found others; leave them "
            "out, they are filled in"
        )
    own = ("fedavg", "fedprox", "fedadam")
    if study.aggregation.name not in own or harmonisation_of(study) is not None:
        raise ConfigError(
            f"aggregation: expected {', '.join(own)} and no site-harmonisation for generation, "
            f"found {study.aggregation.name}"
        )


def _label_kind(study: StudySpec) -> type[object]:
    """The kind of label that the data have, by the tables' names for it; images are their own."""
    if isinstance(study.task, Generation) and isinstance(study.data, ImageData):
        return type(None)
    if isinstance(study.data, Genotypes):
        label = study.data.label
        return Genotypes if isinstance(label, LabelRule | ClassLabel) else type(label)
    if isinstance(study.data, ImageData | ImageMasks):
        return type(study.data)
    if isinstance(study.data, MultimodalData):
        return TimeLabel if study.data.is_timed else MultimodalData
    if isinstance(study.data, LabelledRows):
        if study.data.label is None:
            return type(None)
        timed = isinstance(study.data.label, TimeLabel)
        return TimeLabel if timed else type(study.data)
    if isinstance(study.data, TabularData | NotesData):
        return type(study.data.label)
    if isinstance(study.data, ClinicalData):
        kinds: dict[type[object], type[object]] = {
            EventOutcome: LabelRule,
            ValueOutcome: NumberLabel,
            TimeOutcome: TimeLabel,
            NoOutcome: type(None),
        }
        return kinds[type(study.data.outcome)]
    raise ConfigError(f"data.kind: expected data with a label, found {study.data.kind!r}")
