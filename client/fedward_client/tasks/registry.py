"""Which code learns which kind of study."""

from fedward_client.tasks.drug_targets import DrugTargetTask
from fedward_client.tasks.generation import GenerationTask
from fedward_client.tasks.genotypes import genotype_task
from fedward_client.tasks.images import ImageAnswerTask, ImageClassesTask, SegmentationTask
from fedward_client.tasks.molecules import molecule_task
from fedward_client.tasks.multimodal import multimodal_task
from fedward_client.tasks.notes import NoteAnswerTask, NotePairsTask, NoteTagsTask
from fedward_client.tasks.profiles import profile_task
from fedward_client.tasks.reconstruction import ReconstructionTask
from fedward_client.tasks.sequences import sequence_task
from fedward_client.tasks.survival import SurvivalTask
from fedward_client.tasks.tabular_classification import TabularClassificationTask
from fedward_client.tasks.tabular_regression import TabularRegressionTask
from fedward_client.tasks.task import Task
from fedward_common.errors import ConfigError
from fedward_common.models.image_objectives import LabelTargets, OneClassTargets
from fedward_common.study.drug_target import DrugTarget, DrugTargetData
from fedward_common.study.generation import Generation
from fedward_common.study.genotypes import GenotypeClassification, GenotypeRegression, Genotypes
from fedward_common.study.imaging import (
    ClassLabel,
    ImageClassification,
    ImageData,
    ImageMasks,
    ImageSegmentation,
)
from fedward_common.study.inputs import input_size
from fedward_common.study.molecule import MoleculeData, MoleculeProperty
from fedward_common.study.multimodal import MultimodalClassification, MultimodalData
from fedward_common.study.notes import (
    NotesData,
    TagLabel,
    TextClassification,
    TextNer,
    TextRelations,
)
from fedward_common.study.profiles import ExpressionClassification, ProfileData
from fedward_common.study.reconstruction import Autoencoder
from fedward_common.study.sequence import SequenceClassification, SequenceData
from fedward_common.study.spec import StudySpec
from fedward_common.study.survival import Survival
from fedward_common.study.tabular import TabularClassification
from fedward_common.study.tasks import (
    TabularRegression,
    TimeseriesClassification,
    check_task,
)


def task_of(study: StudySpec) -> Task:
    """The task that `study` describes.

    Raises:
        ConfigError: this version has no code for the task, or task, label, model and releases do
            not fit together.
    """
    check_task(study)
    inputs = input_size(study.data)
    match study.task:
        case TabularClassification() | TimeseriesClassification() | TabularRegression():
            return _answer_task(study, inputs=inputs)
        case ImageClassification() if isinstance(study.data, ImageData):
            return _image_task(study.task, study.data)
        case ImageSegmentation() if isinstance(study.data, ImageMasks):
            return SegmentationTask(study.task, study.data)
        case TextClassification() | TextNer() | TextRelations():
            return _note_task(study)
        case (
            SequenceClassification()
            | MoleculeProperty()
            | DrugTarget()
            | ExpressionClassification()
        ):
            return _row_task(study)
        case MultimodalClassification() | Survival():
            return _whole_task(study, inputs=inputs)
        case GenotypeClassification() | GenotypeRegression() if isinstance(study.data, Genotypes):
            return genotype_task(study.task, study.data)
        case Autoencoder() | Generation():
            own = ReconstructionTask if isinstance(study.task, Autoencoder) else GenerationTask
            return own(study)
    raise _unknown(study)


def _unknown(study: StudySpec) -> ConfigError:
    return ConfigError(
        f"study {study.id}: expected a task that this version can learn, found "
        f"{study.task.kind} on {study.data.kind}; install a newer fedward-client"
    )


def _answer_task(study: StudySpec, *, inputs: int) -> Task:
    if isinstance(study.task, TabularRegression):
        return TabularRegressionTask(inputs=inputs)
    return TabularClassificationTask(inputs=inputs)


def _note_task(study: StudySpec) -> Task:
    data = study.data
    if not isinstance(data, NotesData):
        raise _unknown(study)
    if isinstance(study.task, TextRelations):
        return NotePairsTask(data, study.task.class_weights)
    if isinstance(data.label, TagLabel):
        return NoteTagsTask(data, data.label)
    return NoteAnswerTask(data)


def _row_task(study: StudySpec) -> Task:
    task, data = study.task, study.data
    if isinstance(task, SequenceClassification) and isinstance(data, SequenceData):
        return sequence_task(task, data)
    if isinstance(task, MoleculeProperty) and isinstance(data, MoleculeData):
        return molecule_task(task, data)
    if isinstance(task, DrugTarget) and isinstance(data, DrugTargetData):
        return DrugTargetTask(data)
    if isinstance(task, ExpressionClassification) and isinstance(data, ProfileData):
        return profile_task(task, data)
    raise _unknown(study)


def _whole_task(study: StudySpec, *, inputs: int) -> Task:
    task = study.task
    if isinstance(task, MultimodalClassification | Survival) and isinstance(
        study.data, MultimodalData
    ):
        return multimodal_task(task, study.data)
    if isinstance(task, Survival):
        return SurvivalTask(task, inputs=inputs)
    raise _unknown(study)


def _image_task(spec: ImageClassification, data: ImageData) -> Task:
    if data.outputs == 1:
        return ImageAnswerTask(inputs=data.input_size, weights=spec.class_weights)
    kind = OneClassTargets if isinstance(data.label, ClassLabel) else LabelTargets
    return ImageClassesTask(
        kind(data.outputs),
        inputs=data.input_size,
        classes=data.outputs,
        weights=spec.class_weights,
    )
