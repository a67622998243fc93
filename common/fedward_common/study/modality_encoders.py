"""Whether the model of a study has an encoder for each of the modalities that there are."""

from fedward_common.errors import ConfigError
from fedward_common.study.drug_target import DrugTargetData
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.imaging import Pictures
from fedward_common.study.molecule import Smiles
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.notes import NotesData
from fedward_common.study.registry import DataSpec
from fedward_common.study.sequence import Letters, OneHot
from fedward_common.study.spec import StudySpec
from fedward_common.study.survival import HAZARDS, is_proportional


def check_modalities(study: StudySpec) -> None:
    """Returns when a model of several modalities has an encoder for each, and no other has one.

    That model is `multimodal`; of proportional hazards it is `proportional-hazards`, whose risk
    score is then a `multimodal`.

    Raises:
        ConfigError: it has not, or the encoders are of other modalities or sizes.
    """
    data, fusion = study.data, study.model.fusion
    if not isinstance(data, MultimodalData | DrugTargetData):
        if fusion is not None or study.model.name == "multimodal":
            raise ConfigError(
                f"model: expected one of {data.kind}, found one of several modalities"
            )
        return
    name = HAZARDS if is_proportional(study.task) else "multimodal"
    if fusion is None or study.model.name != name:
        raise ConfigError(
            f"model: expected the name {name} and a table model.fusion, found the name "
            f"{study.model.name} {'without' if fusion is None else 'with'} one"
        )
    expected = [(name, part.input_size) for name, part in data.parts.items()]
    found = [(encoder.modality, encoder.inputs) for encoder in fusion.encoders]
    if found != expected:
        raise ConfigError(
            "model.fusion.encoders: expected one for each modality in their order, with its "
            f"inputs, {expected}, found {found}"
        )
    for encoder, part in zip(fusion.encoders, data.parts.values(), strict=True):
        wanted = _own_shape(part)
        if wanted and encoder.shape and encoder.shape != wanted:
            raise ConfigError(
                f"model.fusion.encoders: expected shape {list(wanted)} for {encoder.modality}, "
                f"found {list(encoder.shape)}"
            )
    if study.training.jitter is not None:
        raise ConfigError("training.jitter: expected none with several modalities, found one")


def _own_shape(part: DataSpec | Smiles | Letters) -> tuple[int, ...]:
    """The shape that the encoder of a modality must have where it has one; none: any."""
    if isinstance(part, Pictures):
        return (1, *part.size)
    if isinstance(part, Genotypes):
        return (part.channels, len(part.loci))
    if isinstance(part, Smiles):
        return part.encoding.shape
    if isinstance(part, NotesData):
        return (part.tokeniser.ids, part.tokeniser.size)
    if isinstance(part, Letters) and not isinstance(part.encoding, OneHot):
        return (1, part.token_size)
    return ()
