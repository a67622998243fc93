"""A site's whole patients: the records of each modality, joined by the patient's id in here.

The ids are the site's own pseudonyms, as each [[data]] has them; they go no further than this.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from fedward_common.errors import DataError, ProtocolError
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.multimodal_encoding import join, join_everybody, without_label
from fedward_common.study.spec import StudySpec

Read = Callable[[str, StudySpec], PatientRecords]
"""(modality, study of it alone) -> its records, by the source for its kind."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalityFound:
    """What a site has of one modality: `joined` are its patients who are in the study."""

    name: str
    here: bool
    joined: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WholeFound:
    """What a site has of a study: everybody, who is in it, who has no label, and by modality.

    `torn`: people of several families, of either side of the split and in no other number.
    """

    people: int
    patients: int
    unlabelled: int
    torn: int
    modalities: tuple[ModalityFound, ...]

    def absent(self, held_out: "WholeFound") -> dict[str, int]:
        """Why people of this or the held-out side are not in the study, with their numbers."""
        found = {"in no modality with a label": self.unlabelled + held_out.unlabelled}
        if self.torn:
            found["in several families of the table"] = self.torn
        return found


class MultimodalSource:
    """A `DataSource` over the sources of single modalities.

    `absent` are the modalities that this hospital says it does not have; every other one needs its
    [[data]].
    """

    def __init__(self, absent: Sequence[str]) -> None:
        self._absent = frozenset(absent)

    def joined(self, study: StudySpec, read: Read) -> PatientRecords:
        """The records of whole patients; `read` gives those of each modality.

        Whoever is in no modality with a label is not in the study. A patient whose data of one
        modality do not fit lacks that modality (rules 7).

        Raises:
            DataError: a modality is neither here nor declared absent, or the label's is absent.
            ProtocolError: the study is about a single modality.
        """
        schema = multimodal_schema(study)
        parts = self.parts(study, read)
        away = [name for name, found in parts.items() if found is None]
        unlabelled = without_label(schema, parts)
        if away:
            _log.info("data.modalities-absent", count=len(away))
        if unlabelled:
            # Stays in the worker's own log, as what single sources count.
            _log.warning("data.patients-without-label", count=unlabelled)
        return join(schema, parts)

    def everybody(self, study: StudySpec, read: Read) -> PatientRecords:
        """The records of whoever is in any modality, whether there is a label or not.

        For answers of a finished model and for nothing else: training takes `joined`.

        Raises:
            DataError: a modality is neither here nor declared absent.
            ProtocolError: the study is about a single modality.
        """
        schema = multimodal_schema(study)
        parts = {
            name: None if name in self._absent else self._read(study, name, read)
            for name in schema.parts
        }
        return join_everybody(schema, parts)

    def parts(self, study: StudySpec, read: Read) -> Mapping[str, PatientRecords | None]:
        """Each modality's records by its name; None for one that is absent. Raises: as such."""
        schema = multimodal_schema(study)
        if schema.label_from in self._absent:
            raise DataError(
                f"data: expected modality {schema.label_from!r}, which has the label, here; "
                "absent_modalities in site.toml says that it is not"
            )
        return {
            name: None if name in self._absent else self._read(study, name, read)
            for name in schema.parts
        }

    def tally(
        self,
        study: StudySpec,
        read: Read,
        *,
        chosen: Callable[[str], bool] | None = None,
        torn: frozenset[str] = frozenset(),
    ) -> WholeFound:
        """What a site has of a study, exactly; it stays here. Raises: as `joined`.

        `chosen` tells whose records of all that are read are meant; `torn` are of several families.
        """
        schema, parts = multimodal_schema(study), self.parts(study, read)
        everybody = {name: set(found.ids) for name, found in parts.items() if found is not None}
        here = {
            name: ids if chosen is None else {one for one in ids if chosen(one)}
            for name, ids in everybody.items()
        }
        people, labelled = set[str]().union(*here.values()), here[schema.label_from]
        return WholeFound(
            people=len(people),
            patients=len(labelled),
            unlabelled=len(people - labelled),
            torn=len(torn & set[str]().union(*everybody.values())),
            modalities=tuple(
                ModalityFound(
                    name=name, here=name in here, joined=len(labelled & here.get(name, set()))
                )
                for name in parts
            ),
        )

    @staticmethod
    def _read(study: StudySpec, name: str, read: Read) -> PatientRecords:
        part = multimodal_schema(study).parts[name]
        try:
            return read(name, study.model_copy(update={"data": part}))
        except DataError as error:
            raise DataError(
                f"modality {name!r}: {error}. Where this hospital does not have it, name it in "
                "absent_modalities of site.toml"
            ) from error


def multimodal_schema(study: StudySpec) -> MultimodalData:
    """The schema of a study of several modalities. Raises ProtocolError where it is another."""
    if not isinstance(study.data, MultimodalData):
        raise ProtocolError(f"data: expected kind 'multimodal', found {study.data.kind!r}")
    return study.data
