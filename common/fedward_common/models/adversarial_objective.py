"""What a discriminator is trained by at a hospital, and a generator at the coordinator."""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fedward_common.errors import ModelRefused


class AdversarialObjective:
    """Logits [records, 2]: of the record, and of one generated beside it; labels say nothing.

    The loss is one of the record alone: what was generated beside it is in its own term.
    """

    def losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Half the cross-entropies of both answers of each record, shape [records].

        Raises:
            ModelRefused: outputs of another shape.
        """
        expected = (len(labels), 2)
        if outputs.shape != expected:
            raise ModelRefused(
                "output layer: expected what a discriminator says of a real and of a generated "
                f"record, shape {list(expected)}, found {list(outputs.shape)}"
            )
        return 0.5 * (functional.softplus(-outputs[:, 0]) + functional.softplus(outputs[:, 1]))

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """How real each record looks, in [0, 1]."""
        return torch.sigmoid(outputs[:, 0])

    def classes(self, labels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """No class for anybody."""
        return np.full(len(labels), np.nan, dtype=np.float32)


def generator_loss(judged: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of calling generated records real, from their logits [records]."""
    return functional.softplus(-judged).mean()
