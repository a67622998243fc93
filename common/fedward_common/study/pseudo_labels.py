"""The option of a study to learn from patients without a label."""

from pydantic import Field

from fedward_common.study.registry import Strict


class PseudoLabels(Strict):
    """Patients without a label learn with the class of which the round's model is so sure."""

    confidence: float = Field(gt=0.5, lt=1)
