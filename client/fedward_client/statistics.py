"""A site's answer to a statistics instruction: noised sums, small cells left out."""

from collections.abc import Sequence
from typing import Protocol

from fedward_client.data.tabular import DataSource
from fedward_common.canonical import canonical_json
from fedward_common.errors import ProtocolError
from fedward_common.privacy.randomness import RandomSource
from fedward_common.privacy.statistics import (
    IntegerSource,
    StatisticsRow,
    exact_sums,
    noised,
    withheld,
)
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import StatisticsRelease, statistics_releases
from fedward_common.wire import Instruction


class RowSource(DataSource, Protocol):
    """A `DataSource` that also yields a table's rows as they are (port)."""

    def rows(self, study: StudySpec) -> Sequence[StatisticsRow]:
        """Every readable row of the one table with the study's columns, or every person with
        genotypes; excluded patients left out.

        Raises:
            DataError: no or more than one such table; never because of a patient's cells.
        """
        ...


def release_of(instruction: Instruction, study: StudySpec) -> StatisticsRelease:
    """The release that a statistics instruction asks for: its round counts them from 1.

    Raises:
        ConfigError: the study is not a whole statistics study.
        ProtocolError: it has no such release.
    """
    releases = statistics_releases(study)
    if not 1 <= instruction.round <= len(releases):
        raise ProtocolError(
            f"instruction: expected a release of 1 to {len(releases)} of study {study.id}, found "
            f"{instruction.round}"
        )
    return releases[instruction.round - 1]


def statistics_payload(
    release: StatisticsRelease,
    study: StudySpec,
    rows: Sequence[StatisticsRow],
    *,
    noise: RandomSource,
    integers: IntegerSource,
) -> bytes:
    """The canonical JSON {"values": [...]} of a release: noise first, then the minimum cell size.

    Raises:
        ConfigError: the release does not fit the study's data.
    """
    exact = exact_sums(release, study.data, rows)
    values = noised(release, study.data, exact, noise=noise, integers=integers)
    return canonical_json({"values": withheld(release, study.data, values)})
