"""The registry in memory: passes the same contract suite as the one in SQL."""

from dataclasses import replace

from fedward_common.errors import ConfigError
from fedward_common.ids import Digest, SiteId
from fedward_server.ports import CertificateRecord, SiteRecord, SiteStatus


class InMemoryRegistry:
    def __init__(self, *records: SiteRecord) -> None:
        self._records: dict[SiteId, SiteRecord] = {}
        self._keys: set[Digest] = set()
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

    def renew(self, site_id: SiteId, certificate: CertificateRecord) -> None:
        record = self._records.get(site_id)
        if record is None or record.status is not SiteStatus.ACTIVE:
            raise ConfigError("no such site")
        used = {known.certificate_sha256 for known in self._records.values()}
        if certificate.certificate_sha256 in used or certificate.key_sha256 in self._keys:
            raise ConfigError("used before")
        self._keys.add(certificate.key_sha256)
        self._records[site_id] = replace(
            record,
            certificate_sha256=certificate.certificate_sha256,
            previous_certificate_sha256=(
                record.previous_certificate_sha256 or record.certificate_sha256
            ),
        )

    def seen(self, site_id: SiteId, certificate_sha256: Digest) -> None:
        record = self._records.get(site_id)
        if record is not None and record.certificate_sha256 == certificate_sha256:
            self._records[site_id] = replace(record, previous_certificate_sha256=None)

    def revoked_sites(self) -> list[SiteId]:
        return [record.site_id for record in self.sites() if record.status is SiteStatus.REVOKED]

    def revoke(self, site_id: SiteId) -> None:
        if site_id not in self._records:
            raise ConfigError("no such site")
        self._records[site_id] = replace(self._records[site_id], status=SiteStatus.REVOKED)

    def close(self) -> None:
        pass
