"""The [[data]] of site.toml: where a hospital's patients are, one class per kind.

Relative paths are relative to the folder of site.toml.
"""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedward_common.study.fusion import ModalityName
from fedward_common.study.profile_encoding import LayerFile
from fedward_common.study.profiles import Identifiers, Scale
from fedward_common.study.registry import Strict

FOLDER = "folder"
"""The key of the validation context that holds the folder of site.toml."""


def _resolve(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    if not value:
        raise ValueError("expected a path, found an empty text")
    folder = (info.context or {}).get(FOLDER)
    return Path(value) if folder is None else Path(folder) / value


Location = Annotated[Path, BeforeValidator(_resolve)]


class Entry(Strict):
    """What every [[data]] has.

    `modality`: in a study of several modalities, the name of the one that it is for; needed where
    more than one [[data]] could be. Studies of one modality do not look at it.
    """

    modality: ModalityName | None = None


class CsvFile(Entry):
    """One CSV table with a header line.

    `patient_key` is its column that says who is one patient: with it, a study that takes another
    one is refused. `genomic`: columns are of people's genomes (variants, expression), so that only
    a study that says `genomic = true` may read it.
    """

    kind: Literal["csv"] = "csv"
    path: Location
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    patient_key: str | None = Field(default=None, min_length=1, max_length=256)
    genomic: bool = False


def known_zone_name(name: str) -> str:
    """`name` where it is a time zone. Raises ValueError for another."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("expected a time zone such as Europe/Zurich, found another") from error
    return name


class _Clinical(Entry):
    """A source of clinical events. `time_zone`: whose wall clock its times are compared in."""

    time_zone: str = "UTC"

    @field_validator("time_zone")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_zone_name(name)


class EventFiles(_Clinical):
    """Two tables (CSV, or Parquet by their ending): patients, and their coded events."""

    kind: Literal["events"] = "events"
    patients: Location
    events: Location
    delimiter: str = Field(default=",", min_length=1, max_length=1)


class FhirFolder(_Clinical):
    """FHIR R4: a folder (or one file) of bulk export ndjson and bundles."""

    kind: Literal["fhir"] = "fhir"
    path: Location


class FhirServerUrl(_Clinical):
    """A FHIR R4 server of this hospital, by the address of its base, such as https://host/fhir.

    `token_file` holds a bearer token. A worker without a network (isolation) reaches the server
    through `unix_socket`, which the hospital offers. Plain http is for this host only.
    """

    kind: Literal["fhir-server"] = "fhir-server"
    url: str = Field(pattern=r"^https?://[^\s?#@]+$", max_length=1024)
    token_file: Location | None = None
    unix_socket: Location | None = None
    ca: Location | None = None
    page_size: int = Field(default=500, ge=1, le=10_000)

    @model_validator(mode="after")
    def _not_in_the_clear(self) -> "FhirServerUrl":
        parts = urlsplit(self.url)
        local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        if parts.scheme == "http" and not local and self.unix_socket is None:
            raise ValueError("url: expected https for another host, found http")
        return self


class OmopUrl(_Clinical):
    """An OMOP CDM 5.4 database by its SQLAlchemy URL.

    `url_file` holds the URL instead, where it has a password. `patient_id` says which column of
    `person` is a patient's id, for the list of exclusions and the held-out split.
    """

    kind: Literal["omop"] = "omop"
    url: str | None = Field(default=None, min_length=1, max_length=1024)
    url_file: Location | None = None
    schema_name: str | None = Field(default=None, min_length=1, max_length=64)
    patient_id: Literal["person_id", "person_source_value"] = "person_id"

    @model_validator(mode="after")
    def _one_url(self) -> "OmopUrl":
        if (self.url is None) == (self.url_file is None):
            raise ValueError("expected exactly one of url and url_file")
        return self


class Owned(Entry):
    """Records with the table that says whose they are.

    Either `patient_key`, the column that says who is one patient, or `no_patient_key = true` where
    nobody knows or a record is nobody's: only a study with the privacy unit `record` may read
    those.
    """

    path: Location
    patient_key: str | None = Field(default=None, min_length=1, max_length=256)
    no_patient_key: bool = False

    @model_validator(mode="after")
    def _one_of_them(self) -> "Owned":
        if (self.patient_key is None) != self.no_patient_key:
            raise ValueError("expected either patient_key or no_patient_key = true")
        return self


class ImageFiles(Owned):
    """Images: a folder with images.csv, or a .npz file."""

    kind: Literal["images"] = "images"


ClinicalEntry = EventFiles | FhirFolder | FhirServerUrl | OmopUrl


class NotesFile(Owned):
    """Notes in one CSV table. `vocabulary`: the word pieces that a study names by digest."""

    kind: Literal["notes"] = "notes"
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    vocabulary: Location | None = None


class SequenceFiles(Owned):
    """Biological sequences in one CSV table, or named there and standing in the file `fasta`."""

    kind: Literal["sequences"] = "sequences"
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    fasta: Location | None = None


class GenotypeFiles(Entry):
    """Genotypes: a VCF or BCF (an index beside it is used), a PLINK 1 set by its .bed or a PLINK 2
    set by its .pgen, and a CSV table of the people in it.

    `people` says whose a sample is (`patient_key`), with `family_key` who is kin, and what else a
    study asks for. With `family_key` only a study with the privacy unit `family` may read them.
    `build` is the reference that positions are of.
    """

    kind: Literal["genotypes"] = "genotypes"
    path: Location
    people: Location
    build: Literal["GRCh37", "GRCh38"]
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    patient_key: str = Field(min_length=1, max_length=256)
    family_key: str | None = Field(default=None, min_length=1, max_length=256)


class MoleculeFile(Owned):
    """Molecules as SMILES in one CSV table; a molecule is nobody's, unless `patient_key` is."""

    kind: Literal["molecules"] = "molecules"
    delimiter: str = Field(default=",", min_length=1, max_length=1)


class DrugTargetFile(Owned):
    """Pairs of a SMILES and a protein, whose letters stand there or in the file `fasta`."""

    kind: Literal["drug-targets"] = "drug-targets"
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    fasta: Location | None = None


class MatrixFile(Strict):
    """A matrix of patients by genes: CSV, TSV, Parquet or .h5ad by its ending.

    `scale` and `identifiers` say what the values and the genes' names are; `mapping` is the table
    that a study names by digest, for a study with the other identifiers.
    """

    layer: str = Field(min_length=1, max_length=64)
    path: Location
    scale: Scale
    identifiers: Identifiers = "hgnc"
    mapping: Location | None = None
    delimiter: str = Field(default=",", min_length=1, max_length=1)

    @property
    def file(self) -> LayerFile:
        """The same as a value for the encoding."""
        return LayerFile(
            layer=self.layer,
            path=self.path,
            scale=self.scale,
            identifiers=self.identifiers,
            mapping=self.mapping,
            delimiter=self.delimiter,
        )


class ProfileFiles(Owned):
    """Molecular profiles: a CSV table of the patients, and a matrix for each layer."""

    kind: Literal["profiles"] = "profiles"
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    matrices: tuple[MatrixFile, ...] = Field(default=(), max_length=16, strict=False)


LabelledEntry = SequenceFiles | MoleculeFile | DrugTargetFile | ProfileFiles


def _data_kind(value: object) -> str:
    """The kind of a [[data]] table; without one it is a CSV table, as before there were others."""
    kind = value.get("kind", "csv") if isinstance(value, dict) else getattr(value, "kind", "csv")
    return kind if isinstance(kind, str) else "csv"


DataEntry = Annotated[
    Annotated[CsvFile, Tag("csv")]
    | Annotated[EventFiles, Tag("events")]
    | Annotated[FhirFolder, Tag("fhir")]
    | Annotated[FhirServerUrl, Tag("fhir-server")]
    | Annotated[OmopUrl, Tag("omop")]
    | Annotated[ImageFiles, Tag("images")]
    | Annotated[NotesFile, Tag("notes")]
    | Annotated[SequenceFiles, Tag("sequences")]
    | Annotated[GenotypeFiles, Tag("genotypes")]
    | Annotated[MoleculeFile, Tag("molecules")]
    | Annotated[DrugTargetFile, Tag("drug-targets")]
    | Annotated[ProfileFiles, Tag("profiles")],
    Discriminator(_data_kind),
]
