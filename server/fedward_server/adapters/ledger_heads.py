"""The heads of the sites' ledgers in one JSON file of the coordinator's state."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fedward_common.canonical import canonical_json
from fedward_common.errors import ConfigError, LedgerError
from fedward_common.ids import SiteId
from fedward_common.privacy.ledger import Head
from fedward_common.trust.private_files import write_atomically
from fedward_server.ledger_heads import Seen, observed

FORMAT: Final = "fedward-ledger-heads/1"
NAME: Final = "ledger-heads.json"


class HeadsFile:
    """`LedgerHeads` over a file that runs share; durable when `observe` returns."""

    def __init__(self, state: Path) -> None:
        self._path = state / NAME
        self._lock = state / f"{NAME}.lock"

    def newest(self) -> Mapping[SiteId, int]:
        """The highest row number that each site has shown.

        Raises:
            LedgerError: the file is damaged.
        """
        return {site: max(rows) for site, rows in self._read().items() if rows}

    def observe(self, site: SiteId, head: Head, *, floor: int) -> None:
        """Takes note of a head; see `LedgerHeads.observe`."""
        with self._alone():
            seen = self._read()
            before = seen.get(site, {})
            after = observed(before, site, head, floor=floor)
            if after is not before:
                self._write({**seen, site: after})

    def forget(self, site: SiteId) -> None:
        """Forgets a site's heads: an operator's word that its ledger may begin anew.

        Raises:
            ConfigError: nothing is known of that site.
        """
        with self._alone():
            seen = self._read()
            if site not in seen:
                raise ConfigError(f"site {site}: expected a known ledger head, found none")
            self._write({name: rows for name, rows in seen.items() if name != site})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._lock, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _read(self) -> dict[SiteId, Seen]:
        try:
            document: Any = json.loads(self._path.read_bytes())
            if document["format"] != FORMAT:
                raise ValueError(document["format"])
            return {
                SiteId(site): {int(seq): str(sha256) for seq, sha256 in rows.items()}
                for site, rows in document["sites"].items()
            }
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LedgerError(
                f"{self._path}: expected the heads of the sites' ledgers, found something else. "
                "Restore the newest copy"
            ) from error

    def _write(self, seen: Mapping[SiteId, Seen]) -> None:
        sites = {
            site: {str(seq): sha256 for seq, sha256 in rows.items()} for site, rows in seen.items()
        }
        write_atomically(self._path, canonical_json({"format": FORMAT, "sites": sites}), mode=0o600)
