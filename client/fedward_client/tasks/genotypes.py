"""Learning from genotypes: the tasks of tables and images, on the numbers of a panel."""

from fedward_client.tasks.images import ImageAnswerTask, ImageClassesTask
from fedward_client.tasks.tabular_regression import TabularRegressionTask
from fedward_client.tasks.task import Task
from fedward_common.errors import ConfigError
from fedward_common.models.image_objectives import OneClassTargets
from fedward_common.study.genotypes import GenotypeClassification, GenotypeRegression, Genotypes
from fedward_common.study.imaging import ClassLabel


def genotype_task(spec: GenotypeClassification | GenotypeRegression, data: Genotypes) -> Task:
    """One logit, a logit for each of several classes, or one number. Raises ConfigError."""
    if isinstance(spec, GenotypeRegression):
        return TabularRegressionTask(inputs=data.input_size)
    if isinstance(data.label, ClassLabel):
        return ImageClassesTask(
            OneClassTargets(data.outputs),
            inputs=data.input_size,
            classes=data.outputs,
            weights=spec.class_weights,
        )
    if data.label is None:
        raise ConfigError("data.label: expected a label to learn, found none")
    return ImageAnswerTask(inputs=data.input_size, weights=spec.class_weights)
