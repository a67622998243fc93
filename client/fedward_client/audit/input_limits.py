"""How large each input of a model may be, by the study alone: 1 of a number, the last of words."""

import math

import numpy as np
import numpy.typing as npt

from fedward_common.privacy.randomness import Float64Array
from fedward_common.study.drug_target import DrugTargetData
from fedward_common.study.inputs import input_size
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.notes import NotesData
from fedward_common.study.registry import DataSpec
from fedward_common.study.sequence import Letters, SequenceData


def input_limits(data: DataSpec) -> Float64Array:
    """The largest absolute value of each input, [inputs]: above 1 only of words, whole numbers."""
    if isinstance(data, DrugTargetData):
        presence = np.ones(len(data.parts) + data.molecule.input_size)
        return np.concatenate([presence, _letters(data.protein)])
    if isinstance(data, MultimodalData):
        presence = np.ones(len(data.modalities))
        return np.concatenate([presence, *(input_limits(part) for part in data.parts.values())])
    if isinstance(data, NotesData):
        return np.full(data.input_size, float(data.token_size - 1))
    if isinstance(data, SequenceData):
        return _letters(data)
    return np.ones(input_size(data))


def _letters(data: Letters) -> Float64Array:
    return np.full(data.input_size, float(data.token_size - 1) if data.tokens else 1.0)


def outermost(features: npt.NDArray[np.float32], limits: Float64Array) -> float:
    """The largest of all inputs over its limit; infinite for a word that is no whole number from 0
    up, and for what is no number at all.
    """
    wide = features.astype(np.float64)
    words = limits > 1.0
    broken = words & ((wide != np.round(wide)) | (wide < 0.0))
    if not wide.size:
        return 0.0
    largest = float(np.max(np.abs(wide) / limits))
    return math.inf if bool(broken.any()) or math.isnan(largest) else largest
