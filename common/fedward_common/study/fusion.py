"""The sizes of a model of several modalities: an encoder for each, and how they become one."""

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from fedward_common.study.registry import Strict

ModalityName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
MOST_MODALITIES: Final = 8

Size = Annotated[int, Field(ge=1, le=65536)]
EncoderName = Literal[
    "linear",
    "mlp",
    "cnn",
    "resnet18",
    "resnet50",
    "densenet121",
    "locus-cnn",
    "gru",
    "lstm",
    "ft-transformer",
    "bilstm",
    "text-transformer",
    "cnn1d",
    "graph-network",
    "sequence-transformer",
]
"""Models of one modality that put out several numbers for a record."""


class Encoder(Strict):
    """The model of one modality, by its name and with its sizes as in `ModelSpec`.

    `inputs` are those of its modality; a study file may leave them out.
    """

    modality: ModalityName
    name: EncoderName
    inputs: int = Field(ge=1, le=1 << 24)
    hidden: tuple[Size, ...] = Field(default=(), max_length=16, strict=False)
    steps: int = Field(default=0, ge=0, le=4096)
    shape: tuple[Size, ...] = Field(default=(), max_length=4, strict=False)


class Fusion(Strict):
    """How the modalities of a patient become one answer.

    Every encoder puts out `width` numbers in [-1, 1]. `concatenation`: side by side. `gated`: their
    sum, each number times a gate that looks at all modalities (Arevalo et al. 2017). `attention`:
    their mean, weighted by a learned score of each (Ilse et al. 2018), to which a missing one has
    no part. With the others a learned vector stands in for what is missing.
    """

    how: Literal["concatenation", "gated", "attention"]
    width: int = Field(ge=2, le=1024)
    encoders: tuple[Encoder, ...] = Field(min_length=2, max_length=MOST_MODALITIES, strict=False)

    @property
    def inputs(self) -> int:
        """The inputs of the whole model: one presence a modality, then every modality's."""
        return len(self.encoders) + sum(encoder.inputs for encoder in self.encoders)

    @model_validator(mode="after")
    def _once(self) -> "Fusion":
        names = [encoder.modality for encoder in self.encoders]
        if len(set(names)) != len(names):
            raise ValueError("encoders: expected one for each modality, found two of one")
        return self
