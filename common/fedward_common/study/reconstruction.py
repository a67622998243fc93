"""The variants about what a record is made again from: autoencoders, plain and variational."""

from typing import Literal

from pydantic import Field

from fedward_common.study.evaluation import EvaluationRelease
from fedward_common.study.registry import TaskSpec, register


@register
class Autoencoder(TaskSpec):
    """A record's own inputs, made again from a short code; the data have no label.

    Numbers count by the squared error, categories by the cross-entropy of their values. With the
    model `variational-autoencoder` the loss is the negative evidence lower bound (Kingma and
    Welling 2014): numbers lie about what is made with the standard deviation `spread` (on their
    scale, where the study's limits are -1 and 1), and the code's divergence from a standard normal
    weighs `beta` (Higgins et al. 2017). All of it is one patient's own.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    spread: float = Field(default=0.3, ge=0.01, le=1)
    beta: float = Field(default=1.0, ge=0, le=100)


@register
class ErrorScores(EvaluationRelease):
    """Evaluation of an autoencoder, once: held-out patients by the error of their reconstruction,
    the root mean square over the inputs, in equal parts of [0, `largest`]; what is larger is last.
    """

    kind: Literal["error-scores"] = "error-scores"
    largest: float = Field(default=1.0, gt=0, le=2)

    @property
    def rows(self) -> int:
        """One."""
        return 1

    @property
    def counted(self) -> str:
        """What is counted, in words for a hospital."""
        return (
            f"held-out patients by how far their reconstruction is off, up to {self.largest:g}, in "
            f"{self.bins} parts"
        )
