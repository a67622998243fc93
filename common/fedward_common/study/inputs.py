"""How many inputs a model of a study has, whatever kind of data it is about, and of which kinds."""

from dataclasses import dataclass

from fedward_common.errors import ConfigError
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.imaging import Pictures
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.notes import NotesData
from fedward_common.study.profiles import ProfileData
from fedward_common.study.registry import DataSpec
from fedward_common.study.tabular import CategoryColumn, Column, TabularData


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """Which inputs are numbers, and which belong to one category: (first, one past the last)."""

    numbers: tuple[int, ...]
    categories: tuple[tuple[int, int], ...]


def inputs_of(data: DataSpec) -> Inputs:
    """The kinds of inputs of a study's data; of what is no table, all are numbers."""
    columns: tuple[Column, ...] = ()
    if isinstance(data, TabularData):
        columns = data.columns
    elif isinstance(data, ProfileData):
        columns = data.clinical
    numbers: list[int] = []
    categories = []
    place = 0
    for column in columns:
        if isinstance(column, CategoryColumn):
            categories.append((place, place + len(column.values) - 1))
            place += len(column.values) - 1
        else:
            numbers.append(place)
            place += 1
    numbers += range(place, input_size(data))
    return Inputs(numbers=tuple(numbers), categories=tuple(categories))
