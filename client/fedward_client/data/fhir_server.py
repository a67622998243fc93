"""Clinical events from a FHIR R4 server: searches by code, page after page.

The server is the hospital's own. What is asked for is only what the study names; what it answers
goes through the same reader as files do.

Source: HL7 FHIR R4 (4.0.1), RESTful API: search, paging by links.
"""

import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urljoin, urlsplit

from fedward_client.data.fhir import URIS, FhirReader
from fedward_common.errors import DataError
from fedward_common.study.clinical_events import Person, wanted, zone_utc

FHIR_JSON: Final = "application/fhir+json"
SEARCHED: Final = {
    # Of observations, a component may carry the code (R4 search parameter combo-code).
    "Observation": "combo-code",
    "Condition": "code",
    "Procedure": "code",
    "MedicationRequest": "code",
    "MedicationStatement": "code",
    "MedicationAdministration": "code",
    "Immunization": "vaccine-code",
    "Encounter": "type",
    "AllergyIntolerance": "code",
}
"""Resource type -> the search parameter that compares its code."""
CODES_AT_ONCE: Final = 40
MAX_PAGE_BYTES: Final = 256 << 20
TIMEOUT_SECONDS: Final = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FhirEndpoint:
    """Where the server is.

    `unix_socket` is the way to it where the worker has no network (isolation): the bytes then go
    through that socket, TLS and names as without it. `ca`: PEM certificates that the server's is
    checked against instead of the system's.
    """

    url: str
    token: str | None = None
    unix_socket: Path | None = None
    ca: Path | None = None
    page_size: int = 500


class FhirServer:
    """People from a FHIR R4 server; only read."""

    def __init__(self, endpoint: FhirEndpoint, *, zone: tzinfo | None = None) -> None:
        self._endpoint, self._zone = endpoint, zone or zone_utc()

    def people(self, concepts: Sequence[str]) -> dict[str, Person]:
        """Every Patient with their events of `concepts`; see `PeopleSource`.

        A resource that several searches give, or that moved to another page, counts once.

        Raises:
            DataError: the server cannot be reached, refuses, answers something else than pages of
                resources, or sends to another server; nothing out of its answers is in the text.
        """
        reader = FhirReader(concepts, zone=self._zone)
        for resource in self.resources(concepts):
            reader.take(resource)
        return reader.known

    def resources(self, concepts: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Every Patient and every resource of `concepts`, once. Raises: as `people`."""
        seen: set[tuple[str, str]] = set()
        with _Connection(self._endpoint) as connection:
            for search in searches(concepts, page_size=self._endpoint.page_size):
                for resource in connection.found(search):
                    name = (str(resource.get("resourceType")), str(resource.get("id")))
                    if name not in seen:
                        seen.add(name)
                        yield resource


def searches(concepts: Sequence[str], *, page_size: int) -> Iterator[str]:
    """The searches, relative to the server's base, that give everything a study reads."""
    yield f"Patient?_count={page_size}"
    addresses = {name: address for address, name in URIS.items()}
    tokens = [
        quote(f"{addresses[system]}|{code}" if system in addresses else code, safe="")
        for system, codes in wanted(concepts).items()
        if system != "OMOP"  # ids of that model's own
        for code in sorted(codes)
    ]
    for kind, parameter in SEARCHED.items():
        for start in range(0, len(tokens), CODES_AT_ONCE):
            some = ",".join(tokens[start : start + CODES_AT_ONCE])
            yield f"{kind}?{parameter}={some}&_count={page_size}"


class _Connection:
    """One connection to the server, kept over the pages."""

    def __init__(self, endpoint: FhirEndpoint) -> None:
        self._endpoint = endpoint
        self._base = endpoint.url.rstrip("/") + "/"
        self._http = _connect(endpoint)

    def __enter__(self) -> "_Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def found(self, search: str) -> Iterator[dict[str, Any]]:
        """The resources of every page of a search. Raises DataError as `FhirServer.people`."""
        address: str | None = urljoin(self._base, search)
        visited: set[str] = set()
        while address is not None:
            if address in visited or _origin(address) != _origin(self._base):
                # The token goes to nobody but the server that site.toml names.
                raise _unfit("a link to a new page of the same server")
            visited.add(address)
            page = self._page(address)
            entries = page.get("entry", [])
            for entry in entries if isinstance(entries, list) else []:
                resource = entry.get("resource") if isinstance(entry, dict) else None
                if isinstance(resource, dict):
                    yield resource
            address = _next(page, address)

    def _page(self, address: str) -> Mapping[str, Any]:
        import orjson  # noqa: PLC0415 - only who has FHIR needs it

        target = urlsplit(address)
        headers = {"Accept": FHIR_JSON}
        if self._endpoint.token:
            headers["Authorization"] = f"Bearer {self._endpoint.token}"
        try:
            self._http.request("GET", f"{target.path}?{target.query}", headers=headers)
            answer = self._http.getresponse()
            content = answer.read(MAX_PAGE_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise DataError(
                f"FHIR server: expected it to answer, found {type(error).__name__}; check url, ca "
                "and unix_socket of [[data]] in site.toml"
            ) from None
        if answer.status != http.client.OK:
            raise DataError(
                f"FHIR server: expected an answer to a search, found HTTP status {answer.status}; "
                "check url and token_file of [[data]] in site.toml"
            )
        if len(content) > MAX_PAGE_BYTES:
            raise _unfit(f"pages of at most {MAX_PAGE_BYTES} bytes; lower page_size")
        try:
            page = orjson.loads(content)
        except orjson.JSONDecodeError:
            page = None
        if not isinstance(page, dict) or page.get("resourceType") != "Bundle":
            raise _unfit("a Bundle of found resources")
        return page


class _UnixConnection(http.client.HTTPConnection):
    """HTTP(S) to a server whose port is offered as a Unix socket."""

    def __init__(
        self, host: str, path: Path, *, context: ssl.SSLContext | None, timeout: float
    ) -> None:
        super().__init__(host, timeout=timeout)
        self._path, self._context = path, context

    def connect(self) -> None:
        """Opens the socket, and TLS in it where the address says https."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
        if self._context is not None:
            name = self.host.rpartition(":")[0] or self.host
            self.sock = self._context.wrap_socket(self.sock, server_hostname=name)


def _connect(endpoint: FhirEndpoint) -> http.client.HTTPConnection:
    parts = urlsplit(endpoint.url)
    context = None
    if parts.scheme == "https":
        try:
            context = ssl.create_default_context(
                cafile=None if endpoint.ca is None else str(endpoint.ca)
            )
        except (OSError, ssl.SSLError):
            raise DataError(
                "FHIR server: expected certificates (PEM) in the file that ca of [[data]] names, "
                "found none"
            ) from None
    if endpoint.unix_socket is not None:
        return _UnixConnection(
            parts.netloc, endpoint.unix_socket, context=context, timeout=TIMEOUT_SECONDS
        )
    if context is not None:
        return http.client.HTTPSConnection(parts.netloc, context=context, timeout=TIMEOUT_SECONDS)
    return http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT_SECONDS)


def _next(page: Mapping[str, Any], address: str) -> str | None:
    """The address of the page after this one; None where it was the last."""
    links = page.get("link", [])
    for link in links if isinstance(links, list) else []:
        if isinstance(link, dict) and link.get("relation") == "next":
            url = link.get("url")
            if not isinstance(url, str):
                raise _unfit("the address of the next page")
            return urljoin(address, url)
    return None


def _origin(address: str) -> tuple[str, str]:
    parts = urlsplit(address)
    return parts.scheme, parts.netloc


def _unfit(expected: str) -> DataError:
    return DataError(f"FHIR server: expected {expected}, found something else")
