"""How many inputs a model of a study has, whatever kind of data it is about."""

from fedward_common.errors import ConfigError
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.imaging import Pictures
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.notes import NotesData
from fedward_common.study.registry import DataSpec
from fedward_common.study.tabular import TabularData


def input_size(data: DataSpec) -> int:
    """The number of inputs of one record.

    Raises:
        ConfigError: data from which nothing is learned.
    """
    learned = TabularData | ClinicalData | Pictures | NotesData | LabelledRows | Genotypes
    if not isinstance(data, learned | MultimodalData):
        raise ConfigError(
            f"data.kind: expected data with records to learn from, found {data.kind!r}"
        )
    return data.input_size
