"""Which code learns which kind of study."""

from fedward_client.tasks.survival import SurvivalTask
from fedward_client.tasks.tabular_classification import TabularClassificationTask
from fedward_client.tasks.tabular_regression import TabularRegressionTask
from fedward_client.tasks.task import Task
from fedward_common.errors import ConfigError
from fedward_common.study.imaging import ImageClassification
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec
from fedward_common.study.tabular import TabularClassification
from fedward_common.study.tasks import (
    Survival,
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
        case TabularClassification() | TimeseriesClassification() | ImageClassification():
            return TabularClassificationTask(inputs=inputs)
        case TabularRegression():
            return TabularRegressionTask(inputs=inputs)
        case Survival():
            return SurvivalTask(study.task, inputs=inputs)
    raise ConfigError(
        f"study {study.id}: expected a task that this version can learn, found "
        f"{study.task.kind} on {study.data.kind}; install a newer fedward-client"
    )
