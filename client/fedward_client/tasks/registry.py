"""Which code learns which kind of study."""

from fedward_client.tasks.tabular_classification import TabularClassificationTask
from fedward_client.tasks.task import Task
from fedward_common.errors import ConfigError
from fedward_common.study.spec import StudySpec
from fedward_common.study.tabular import TabularClassification, TabularData


def task_of(study: StudySpec) -> Task:
    """The task that `study` describes.

    Raises:
        ConfigError: this version has no code for that pair of task and data.
    """
    if isinstance(study.task, TabularClassification) and isinstance(study.data, TabularData):
        return TabularClassificationTask(inputs=study.data.input_size)
    raise ConfigError(
        f"study {study.id}: expected task tabular-classification on data of kind tabular, found "
        f"{study.task.kind} on {study.data.kind}; install a newer fedward-client"
    )
