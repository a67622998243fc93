"""Low-rank adapters of a model, as a study names them."""

from typing import Annotated

from pydantic import Field

from fedward_common.study.registry import Strict


class LoRa(Strict):
    """Low-rank adapters of rank `rank` beside layers whose own numbers stay as they start.

    `layers`: how the names of the adapted layers begin; Linear layers and ungrouped convolutions.
    """

    rank: int = Field(ge=1, le=1024)
    layers: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        min_length=1, max_length=256, strict=False
    )
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def is_base(self, tensor: str) -> bool:
        """Whether a tensor of this name is a number of an adapted layer itself."""
        return tensor.startswith(self.layers) and tensor.rpartition(".")[0].endswith(".base")
