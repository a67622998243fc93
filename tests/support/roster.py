"""The registry in memory: passes the same contract suite as the one in SQL."""

from dataclasses import replace

from fedward_common.errors import ConfigError
from fedward_common.ids import Digest, SiteId
from fedward_server.ports import SiteRecord, SiteStatus


class InMemoryRegistry:
    def __init__(self, *records: SiteRecord) -> None:
        self._records: dict[SiteId, SiteRecord] = {}
        for record in records:
            self.add(record)

    def add(self, record: SiteRecord) -> None:
        for known in self._records.values():
            if (
                known.site_id == record.site_id
                or known.certificate_sha256 == record.certificate_sha256
                or known.node_public_key == record.node_public_key
                or known.signing_public_key == record.signing_public_key
            ):
                raise ConfigError("registered already")
        self._records[record.site_id] = record

    def find(self, site_id: SiteId) -> SiteRecord | None:
        return self._records.get(site_id)

    def sites(self) -> list[SiteRecord]:
        return [self._records[site] for site in sorted(self._records)]

    def active_sites(self) -> list[SiteRecord]:
        return [record for record in self.sites() if record.status is SiteStatus.ACTIVE]

    def renew(self, site_id: SiteId, *, certificate_sha256: Digest) -> None:
        record = self._records.get(site_id)
        if record is None or record.status is not SiteStatus.ACTIVE:
            raise ConfigError("no such site")
        others = [other for other in self._records.values() if other.site_id != site_id]
        if any(other.certificate_sha256 == certificate_sha256 for other in others):
            raise ConfigError("another site's certificate")
        self._records[site_id] = replace(record, certificate_sha256=certificate_sha256)

    def revoke(self, site_id: SiteId) -> None:
        if site_id not in self._records:
            raise ConfigError("no such site")
        self._records[site_id] = replace(self._records[site_id], status=SiteStatus.REVOKED)

    def close(self) -> None:
        pass
