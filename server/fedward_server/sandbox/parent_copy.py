"""The sandbox parent's own copy of every site's patients.

Nothing in here imports torch: the copy is read before the first process of a federation starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedward_common.errors import DataError
from fedward_common.ids import SiteId
from fedward_common.privacy.statistics import StatisticsRow
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.clinical_encoding import Encoder
from fedward_common.study.clinical_events import People
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.imaging import Pictures
from fedward_common.study.kin import Kin, by_family, per_person
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.multimodal_encoding import join
from fedward_common.study.notes import NotesData
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import is_statistics
from fedward_server.sandbox.clinical import read_people
from fedward_server.sandbox.folders import data_file, modality_folders
from fedward_server.sandbox.genotypes import read_genotypes, read_kin
from fedward_server.sandbox.images import read_images
from fedward_server.sandbox.notes import all_notes
from fedward_server.sandbox.rows import all_rows
from fedward_server.sandbox.table_copy import encoded_rows, read_rows

Tables = Mapping[SiteId, Sequence[StatisticsRow]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParentCopy:
    """The sandbox parent's own copy of every site's patients, for exact figures and comparators."""

    training: Mapping[SiteId, PatientRecords]
    held_out: Mapping[SiteId, PatientRecords]
    tables: Tables = field(default_factory=dict)
    """Every row, for a study of statistics; empty for one that trains."""

    @classmethod
    def read(cls, study: StudySpec, files: Mapping[SiteId, Path]) -> "ParentCopy":
        """The copy, encoded by the study's schema as each site encodes it.

        Raises:
            DataError: a table is missing or does not fit the schema; names the site.
        """
        if is_statistics(study):
            from fedward_server.sandbox.statistics import read_tables  # noqa: PLC0415 - torch

            return cls(training={}, held_out={}, tables=read_tables(study, files))
        if isinstance(study.data, MultimodalData):
            return cls._whole(study, study.data, files)
        if isinstance(study.data, Pictures):
            images = {s: read_images(study.data, s, path) for s, path in files.items()}
            return cls(
                training={site: parts[0] for site, parts in images.items()},
                held_out={site: parts[1] for site, parts in images.items()},
            )
        if isinstance(study.data, Genotypes):
            schema = study.data
            return cls(
                training={s: read_genotypes(schema, s, p, "train") for s, p in files.items()},
                held_out={s: read_genotypes(schema, s, p, "test") for s, p in files.items()},
            )
        if isinstance(study.data, ClinicalData):
            people = {s: read_people(study.data, s, path) for s, path in files.items()}
            return cls(
                training={s: _encoded(study.data, s, p, part="train") for s, p in people.items()},
                held_out={s: _encoded(study.data, s, p, part="test") for s, p in people.items()},
            )
        tables = {site: read_rows(site, path) for site, path in files.items()}
        if isinstance(study.data, NotesData):
            found = study.data, files, tables
            return cls(training=all_notes(*found, "train"), held_out=all_notes(*found, "test"))
        if isinstance(study.data, LabelledRows):
            own = study.data, files, tables
            return cls(training=all_rows(*own, "train"), held_out=all_rows(*own, "test"))
        return cls(
            training={s: encoded_rows(study, s, rows, part="train") for s, rows in tables.items()},
            held_out={s: encoded_rows(study, s, rows, part="test") for s, rows in tables.items()},
        )

    @classmethod
    def _whole(
        cls, study: StudySpec, schema: MultimodalData, files: Mapping[SiteId, Path]
    ) -> "ParentCopy":
        """The copies of every modality at the sites that have it, joined per patient."""
        folders = {site: modality_folders(folder) for site, folder in files.items()}
        read_as = schema if schema.kin_from is None else per_person(schema)
        copies = {
            name: cls.read(
                study.model_copy(update={"data": part}),
                {site: data_file(own[name]) for site, own in folders.items() if name in own},
            )
            for name, part in read_as.parts.items()
        }

        def joined(part: TablePart) -> dict[SiteId, PatientRecords]:
            return {
                site: join(read_as, {name: one.of(part).get(site) for name, one in copies.items()})
                for site in files
            }

        everybody = joined("train")
        if schema.kin_from is None:
            return cls(training=everybody, held_out=joined("test"))
        kin = {site: _kin(schema, site, own) for site, own in folders.items()}
        parts: tuple[TablePart, TablePart] = ("train", "test")
        training, held_out = (
            {
                site: by_family(schema, found, kin[site], part=part, strict=True)
                for site, found in everybody.items()
            }
            for part in parts
        )
        return cls(training=training, held_out=held_out)

    def of(self, part: TablePart) -> Mapping[SiteId, PatientRecords]:
        """The records of one side of the split."""
        return self.training if part == "train" else self.held_out


def _kin(schema: MultimodalData, site: SiteId, folders: Mapping[str, Path]) -> Kin:
    """Who is kin at a site; nobody where it has no genotypes."""
    name = schema.kin_from or ""
    part = schema.parts.get(name)
    if name not in folders or not isinstance(part, Genotypes):
        return Kin()
    return read_kin(part, site, data_file(folders[name]))


def _encoded(
    schema: ClinicalData, site: SiteId, people: People, *, part: TablePart
) -> PatientRecords:
    records = Encoder(schema).encode(people, part=part)
    if part == "train" and not records.patients:
        raise DataError(f"{site}: expected a patient of the cohort to train on, found none")
    return records
