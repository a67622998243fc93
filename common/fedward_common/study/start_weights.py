"""Where training begins, when not from a seed: weights in a file that the study names by digest."""

from typing import Annotated

from pydantic import Field

from fedward_common.ids import DIGEST
from fedward_common.study.registry import Strict


class StartWeights(Strict):
    """A safetensors file (float32) by its SHA-256.

    `tensors`: how the names of the model's tensors in it begin, such as those of an encoder; none:
    all of the model. The file holds these and nothing else; the others begin by the model's seed.
    Nothing in the study accounts for the data that they were learned from.
    """

    sha256: str = Field(pattern=DIGEST)
    tensors: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=(), max_length=64, strict=False
    )

    def holds(self, tensor: str) -> bool:
        """Whether a tensor of this name is in the file."""
        return not self.tensors or tensor.startswith(self.tensors)
