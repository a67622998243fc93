"""The heads of the sites' ledgers in one JSON file of the coordinator's state."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from fedward_common.canonical import canonical_json
from fedward_common.errors import ConfigError, LedgerError
from fedward_common.ids import SiteId
from fedward_common.privacy.ledger_values import Head
from fedward_common.trust.private_files import write_atomically
from fedward_server.ledger_heads import Seen, newest_of, observed, require_not_back

FORMAT: Final = "fedward-ledger-heads/1"
NAME: Final = "ledger-heads.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What the file holds."""

    seen: Mapping[SiteId, Seen] = field(default_factory=dict)
    back: frozenset[SiteId] = frozenset()


class HeadsFile:
    """`LedgerHeads` over a file that runs share; durable when `observe` returns."""

    def __init__(self, state: Path) -> None:
        self._path = state / NAME
        self._lock = state / f"{NAME}.lock"

    def newest(self) -> Mapping[SiteId, Head]:
        """The row with the highest number that each site has shown.

        Raises:
            LedgerError: the file is damaged.
        """
        return newest_of(self._read().seen)

    def went_back(self) -> frozenset[SiteId]:
        """The sites whose ledger went back, in this run or any other. Raises as `newest`."""
        return self._read().back

    def observe(self, site: SiteId, head: Head, *, floor: int) -> None:
        """Takes note of a head; see `LedgerHeads.observe`."""
        with self._alone():
            known = self._read()
            require_not_back(site, known.back)
            before = known.seen.get(site, {})
            try:
                after = observed(before, site, head, floor=floor)
            except LedgerError:
                self._write(replace(known, back=known.back | {site}))
                raise
            if after is not before:
                self._write(replace(known, seen={**known.seen, site: after}))

    def forget(self, site: SiteId) -> None:
        """Forgets a site's heads: an operator's word that its ledger may begin anew.

        Raises:
            ConfigError: nothing is known of that site.
        """
        with self._alone():
            known = self._read()
            if site not in known.seen:
                raise ConfigError(f"site {site}: expected a known ledger head, found none")
            kept = {name: rows for name, rows in known.seen.items() if name != site}
            self._write(_Known(seen=kept, back=known.back - {site}))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._lock, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _read(self) -> _Known:
        try:
            document: Any = json.loads(self._path.read_bytes())
            if document["format"] != FORMAT:
                raise ValueError(document["format"])
            seen = {
                SiteId(site): {int(seq): str(sha256) for seq, sha256 in rows.items()}
                for site, rows in document["sites"].items()
            }
            back = frozenset(SiteId(str(site)) for site in document.get("went_back", ()))
            return _Known(seen=seen, back=back)
        except FileNotFoundError:
            return _Known()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LedgerError(
                f"{self._path}: expected the heads of the sites' ledgers, found something else. "
                "Restore the newest copy"
            ) from error

    def _write(self, known: _Known) -> None:
        sites = {
            site: {str(seq): sha256 for seq, sha256 in rows.items()}
            for site, rows in known.seen.items()
        }
        document = {"format": FORMAT, "sites": sites, "went_back": sorted(known.back)}
        write_atomically(self._path, canonical_json(document), mode=0o600)
