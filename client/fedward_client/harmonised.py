"""A site's records as a study with harmonisation takes them, and the constants behind that."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from fedward_client.statistics import RowSource
from fedward_common.arrays import Tensors, tensors_from_bytes, tensors_to_bytes
from fedward_common.errors import ProtocolError
from fedward_common.privacy.harmonise import harmonised, site_constants
from fedward_common.privacy.randomness import RandomSource
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.harmonisation import LOCATION, SCALE, harmonisation_of
from fedward_common.study.spec import StudySpec
from fedward_common.study.tabular import TabularData


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SiteConstants:
    """What a study does to this site's records before anything is learned from them.

    `tensors` are the noised location and scale; empty in a study without harmonisation, whose
    records stay what they are.
    """

    study: StudySpec
    tensors: Tensors

    @classmethod
    def of(
        cls,
        study: StudySpec,
        source: RowSource,
        *,
        state: bytes,
        noise: Callable[[], RandomSource],
    ) -> Self:
        """The constants that the site kept, or, before its first answer, new ones with noise.

        `noise` makes a source, and is called only where there is something to draw.

        Raises:
            ProtocolError: what was kept are no constants of the study.
            DataError: the site has no table of the study.
        """
        release = harmonisation_of(study)
        if release is None or not isinstance(study.data, TabularData):
            return cls(study=study, tensors={})
        if state:
            shapes = dict.fromkeys((LOCATION, SCALE), (len(release.columns),))
            return cls(study=study, tensors=tensors_from_bytes(state, shapes=shapes))
        rows = [row for row in source.rows(study) if isinstance(row, dict)]
        return cls(study=study, tensors=site_constants(release, study.data, rows, noise=noise()))

    @property
    def state(self) -> bytes:
        """What the guard keeps; empty in a study without harmonisation."""
        return tensors_to_bytes(self.tensors) if self.tensors else b""

    def applied(self, records: PatientRecords) -> PatientRecords:
        """The records on the federation's location and scale."""
        release = harmonisation_of(self.study)
        if release is None:
            return records
        if not isinstance(self.study.data, TabularData) or not self.tensors:
            raise ProtocolError("harmonisation: expected a table and this site's constants")
        return harmonised(records, release, self.study.data, self.tensors)


def records_of(
    study: StudySpec, source: RowSource, constants: SiteConstants, *, part: TablePart
) -> PatientRecords:
    """The records of a part as they are learned from or counted.

    Raises:
        DataError: the site's data do not fit the study.
    """
    return constants.applied(source.records(study, part=part))
