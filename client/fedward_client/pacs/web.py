"""DICOMweb: find by QIDO-RS, fetch by WADO-RS, store by STOW-RS (PS3.18).

What an answer or an error of the PACS says is never quoted: it names patients.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset

from fedward_client.data.dicom.quiet import without_words
from fedward_client.pacs.files import Folder, Found, Pulled
from fedward_common.errors import ConfigError, DataError

TIMEOUT_SECONDS: Final = 60.0
PAGE: Final = 100
AS_STORED: Final = (("application/dicom", "*"),)
"""Any transfer syntax: without the word a PACS has to decode every object, which it may be unable
to do (PS3.18, 8.7.3.5.2: the default is Explicit VR Little Endian)."""
_STUDY_UID: Final = "0020000D"
_MODALITIES: Final = "00080061"


class WebPacs:
    """A PACS at `url`. `token_file` holds a bearer token, `ca_file` the root of its certificate.

    Raises:
        ConfigError: a URL without TLS that is not on this machine, or an unreadable token.
    """

    def __init__(
        self, url: str, *, token_file: Path | None = None, ca_file: Path | None = None
    ) -> None:
        local = url.startswith(("http://127.0.0.1:", "http://localhost:", "http://[::1]:"))
        if not url.startswith("https://") and not local:
            raise ConfigError("PACS: expected an https:// address, found one without TLS")
        session = requests.Session()
        session.trust_env = False  # no proxy and no .netrc that nobody named here
        if ca_file is not None:
            session.verify = str(ca_file)
        headers = {}
        if token_file is not None:
            try:
                headers["Authorization"] = f"Bearer {token_file.read_text().strip()}"
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError("PACS: expected token_file to be readable, found none") from error
        self._client = DICOMwebClient(
            url, session=session, headers=headers, timeout=TIMEOUT_SECONDS
        )

    def find(self, filters: Mapping[str, str]) -> Iterator[Found]:
        """The studies with these attributes, page by page, such as ModalitiesInStudy = CT.

        Raises:
            DataError: no answer, or one that is none.
        """
        offset = 0
        while True:
            page = self._page(filters, offset)
            yield from page
            offset += len(page)
            if len(page) < PAGE:
                return

    def pull(self, studies: Sequence[str], *, into: Path) -> Pulled:
        """Fetches studies into a folder, object by object. Raises: as `find`."""
        folder, objects = Folder(into), 0
        for uid in studies:
            try:
                with without_words():
                    for dataset in self._client.iter_study(uid, media_types=AS_STORED):
                        folder.keep(dataset)
                        objects += 1
            except (requests.RequestException, ValueError, AttributeError, OSError) as error:
                raise _silent(error) from None
        return Pulled(studies=len(studies), objects=objects, failed=0)

    def store(self, datasets: Sequence[Dataset]) -> None:
        """Stores objects. Returns when the PACS took every one.

        Raises:
            DataError: it did not.
        """
        try:
            with without_words():
                answer = self._client.store_instances(list(datasets))
        except (requests.RequestException, ValueError, AttributeError, OSError) as error:
            raise _silent(error) from None
        failed = len(answer.get("FailedSOPSequence", ()))
        if failed or len(answer.get("ReferencedSOPSequence", ())) < len(datasets):
            raise DataError("PACS: expected every object to be stored, found some refused")

    def _page(self, filters: Mapping[str, str], offset: int) -> list[Found]:
        try:
            rows = self._client.search_for_studies(
                search_filters=dict(filters), limit=PAGE, offset=offset, fields=["00080061"]
            )
        except (requests.RequestException, ValueError, OSError) as error:
            raise _silent(error) from None
        return [
            Found(
                study_uid=str(row[_STUDY_UID]["Value"][0]),
                modalities=tuple(map(str, row.get(_MODALITIES, {}).get("Value", ()))),
            )
            for row in rows
            if row.get(_STUDY_UID, {}).get("Value")
        ]


def _silent(error: Exception) -> DataError:
    """An error without what the PACS said."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    what = type(error).__name__ if status is None else f"status {status}"
    return DataError(f"PACS: expected an answer over DICOMweb, found {what}")
