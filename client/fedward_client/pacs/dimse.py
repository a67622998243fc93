"""DIMSE: find by C-FIND, fetch by C-GET or C-MOVE (PS3.4), with pynetdicom.

DIMSE has no encryption of its own: use it on a hospital's inner network, or DICOMweb.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydicom.dataset import Dataset
from pynetdicom import AE, StoragePresentationContexts, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from fedward_client.data.dicom.quiet import without_words
from fedward_client.pacs.files import Folder, Found, Pulled
from fedward_common.errors import DataError

PENDING: Final = (0xFF00, 0xFF01)
SUCCESS: Final = 0x0000
CANNOT_UNDERSTAND: Final = 0xC210
MOST_CONTEXTS: Final = 120
"""An association has room for 128."""
WAIT_SECONDS: Final = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A PACS: where it is, its AE title, and the title that it knows this site by."""

    host: str
    port: int
    called: str
    calling: str


class DimsePacs:
    """A PACS by C-FIND and C-GET or C-MOVE.

    For C-MOVE the PACS connects back to `listen_port` and must know this site's title and address.
    """

    def __init__(self, peer: Peer, *, listen_port: int = 0) -> None:
        self._peer, self._listen_port = peer, listen_port

    def find(self, filters: Mapping[str, str]) -> Iterator[Found]:
        """The studies with these attributes. Raises DataError: no association, or a refusal."""
        query = Dataset()
        query.QueryRetrieveLevel = "STUDY"
        query.StudyInstanceUID = ""
        query.ModalitiesInStudy = ""
        for name, value in filters.items():
            setattr(query, name, value)
        entity = self._entity()
        entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
        with self._associated(entity) as open_:
            for status, row in open_.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
                self._require(status)
                if row is not None and row.get("StudyInstanceUID"):
                    modalities = row.get("ModalitiesInStudy") or ()
                    several = (modalities,) if isinstance(modalities, str) else tuple(modalities)
                    yield Found(
                        study_uid=str(row.StudyInstanceUID), modalities=tuple(map(str, several))
                    )

    def pull(self, studies: Sequence[str], *, into: Path, by: Literal["get", "move"]) -> Pulled:
        """Fetches studies into a folder. Raises: as `find`."""
        keeper = _Keeper(Folder(into))
        handlers = [(evt.EVT_C_STORE, keeper.keep)]
        failed = self._get(studies, handlers) if by == "get" else self._move(studies, handlers)
        return Pulled(studies=len(studies), objects=keeper.objects, failed=failed + keeper.refused)

    def _get(self, studies: Sequence[str], handlers: list[Any]) -> int:
        entity, roles = self._entity(), []
        entity.add_requested_context(StudyRootQueryRetrieveInformationModelGet)
        for context in StoragePresentationContexts[:MOST_CONTEXTS]:
            entity.add_requested_context(context.abstract_syntax or "")
            roles.append(build_role(context.abstract_syntax or "", scp_role=True))
        with self._associated(entity, ext_neg=roles, evt_handlers=handlers) as open_:
            return sum(
                self._finished(
                    open_.send_c_get(_study(uid), StudyRootQueryRetrieveInformationModelGet)
                )
                for uid in studies
            )

    def _move(self, studies: Sequence[str], handlers: list[Any]) -> int:
        listener = self._entity()
        listener.supported_contexts = StoragePresentationContexts
        server = listener.start_server(
            ("0.0.0.0", self._listen_port),  # noqa: S104 - the PACS connects back from outside
            block=False,
            evt_handlers=handlers,
        )
        try:
            entity = self._entity()
            entity.add_requested_context(StudyRootQueryRetrieveInformationModelMove)
            with self._associated(entity) as open_:
                return sum(
                    self._finished(
                        open_.send_c_move(
                            _study(uid),
                            self._peer.calling,
                            StudyRootQueryRetrieveInformationModelMove,
                        )
                    )
                    for uid in studies
                )
        finally:
            server.shutdown()

    def _entity(self) -> AE:
        entity = AE(ae_title=self._peer.calling)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = WAIT_SECONDS
        return entity

    @contextmanager
    def _associated(self, entity: AE, **more: Any) -> Iterator[Association]:
        peer = self._peer
        with without_words():
            open_ = entity.associate(peer.host, peer.port, ae_title=peer.called, **more)
            if not open_.is_established:
                raise DataError(
                    "PACS: expected an association, found none; check address, AE titles and that "
                    "the PACS knows this site"
                )
            try:
                yield open_
            finally:
                open_.release()

    def _finished(self, answers: Iterator[tuple[Dataset, Dataset | None]]) -> int:
        """How many objects the PACS says it could not send."""
        failed = 0
        for status, _ in answers:
            self._require(status, partly=True)
            failed = int(status.get("NumberOfFailedSuboperations", 0) or 0)
        return failed

    def _require(self, status: Dataset, *, partly: bool = False) -> None:
        code = status.get("Status")
        good = (*PENDING, SUCCESS, *((0xB000,) if partly else ()))
        if code not in good:
            found = "no answer" if code is None else f"status 0x{int(code):04X}"
            raise DataError(f"PACS: expected success over DIMSE, found {found}")


class _Keeper:
    """Takes objects as they come; one that is no object counts as refused."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.objects = self.refused = 0

    def keep(self, event: evt.Event) -> int:
        """The status of one C-STORE."""
        try:
            with without_words():
                dataset = event.dataset
                dataset.file_meta = event.file_meta
                self._folder.keep(dataset)
        except (AttributeError, ValueError, TypeError, KeyError, OSError):
            self.refused += 1
            return CANNOT_UNDERSTAND
        self.objects += 1
        return SUCCESS


def _study(uid: str) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = uid
    return query
