"""What a discriminator is trained by at a hospital, and a generator at the coordinator."""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fedward_common.errors import ModelRefused


class AdversarialObjective:
    """Logits [records, 2]: of the record, and of one generated beside it; labels say nothing.

    Of several classes [records, 2, classes]: a record's label says as which class both count.
    The loss is one of the record alone: what was generated beside it is in its own term.
    """

    def __init__(self, classes: int = 1) -> None:
        self._classes = classes

    def losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Half the cross-entropies of both answers of each record, shape [records].

        Raises:
            ModelRefused: outputs of another shape.
        """
        several = (self._classes,) if self._classes > 1 else ()
        expected = (len(labels), 2, *several)
        if outputs.shape != expected:
            raise ModelRefused(
                "output layer: expected what a discriminator says of a real and of a generated "
                f"record, shape {list(expected)}, found {list(outputs.shape)}"
            )
        if several:
            own = told_class(labels, self._classes).to(outputs)
            outputs = (outputs * own[:, None]).sum(dim=2)
        return 0.5 * (functional.softplus(-outputs[:, 0]) + functional.softplus(outputs[:, 1]))

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """How real each record looks, in [0, 1]: as one of the class that it fits best."""
        real = outputs[:, 0]
        return torch.sigmoid(real if real.ndim == 1 else real.amax(dim=1))

    def classes(self, labels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """No class for anybody."""
        return np.full(len(labels), np.nan, dtype=np.float32)


def told_class(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Whether a record is of each class, shape [records, classes]."""
    return labels[:, None] == torch.arange(classes, device=labels.device)


def generator_loss(judged: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of calling generated records real, from their logits [records]."""
    return functional.softplus(-judged).mean()
