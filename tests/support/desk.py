"""An enrolment desk with a real registry and two operators; a clock and a log that tests hold."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedward_common.ids import SiteId
from fedward_common.trust.enrolment import SITE_GRANT, EnrolmentRequest, Invite
from fedward_common.trust.signing import SigningKey
from fedward_common.trust.statements import Statement
from fedward_server.adapters.registry import SqlRegistry, open_registry
from fedward_server.enrolment_desk import DeskRules, EnrolmentDesk, grant_facts
from fedward_server.enrolment_intake import EnrolmentIntake
from fedward_server.ports import SiteRecord
from fedward_server.renewal import RenewalDesk
from tests.support.edge import Events, SetTime
from tests.support.enrolling import NewSite
from tests.support.pki import FEDERATION, Authority

ALPHA = SiteId("alpha")


@dataclass
class TestAuthority:
    """An issuing authority in memory."""

    __test__ = False
    authority: Authority = field(default_factory=Authority)

    @property
    def root_pem(self) -> bytes:
        return self.authority.root.certificate_pem

    def issue_site(self, request_pem: bytes, *, site: SiteId, now: Any) -> bytes:
        from fedward_common.trust.certificates import issue_site

        return issue_site(
            self.authority.issuing, request_pem, federation=FEDERATION, site=site, now=now
        )


@dataclass
class Office:
    """Everything around a desk."""

    folder: Path
    needed: int = 2
    registry: SqlRegistry = field(init=False)
    authority: TestAuthority = field(default_factory=TestAuthority)
    log: Events = field(default_factory=Events)
    clock: SetTime = field(default_factory=SetTime)
    operators: dict[str, SigningKey] = field(
        default_factory=lambda: {name: SigningKey.generate() for name in ("Ada", "Ben")}
    )

    def __post_init__(self) -> None:
        self.registry = open_registry(f"sqlite:///{self.folder}/registry.sqlite")

    @property
    def desk(self) -> EnrolmentDesk:
        rules = DeskRules(
            federation=FEDERATION,
            operators={key.public_hex: name for name, key in self.operators.items()},
            operators_needed=self.needed,
            edge_address="hub.example.org:9443",
            server_name=None,
        )
        return EnrolmentDesk(rules=rules, registry=self.registry, log=self.log, clock=self.clock)

    @property
    def intake(self) -> EnrolmentIntake:
        return EnrolmentIntake(
            federation=FEDERATION, registry=self.registry, log=self.log, clock=self.clock
        )

    @property
    def renewals(self) -> RenewalDesk:
        return RenewalDesk(
            authority=self.authority, registry=self.registry, log=self.log, clock=self.clock
        )

    def invite(self, site: SiteId = ALPHA) -> Invite:
        return self.desk.invite(
            site,
            address="hub.example.org:9444",
            server_name=None,
            root_pem=self.authority.root_pem,
        )

    def asked(self, site: NewSite | None = None) -> EnrolmentRequest:
        """An invited site's request, as it waits."""
        who = site or NewSite()
        return self.intake.submit(self.invite(who.site).token, who.request().canonical)

    def says(self, name: str, kind: str, facts: dict[str, Any], **changes: Any) -> Statement:
        values: dict[str, Any] = {"person": name, "key": self.operators[name]}
        return Statement.sign(kind, facts, now=self.clock(), **{**values, **changes})

    def grant(self, name: str, request: EnrolmentRequest, **changes: Any) -> SiteRecord | None:
        record = self.registry.book.find_request(request.sha256)
        assert record is not None
        facts = grant_facts(record)
        return self.desk.grant(self.says(name, SITE_GRANT, facts, **changes), self.authority)

    def member(self, site: NewSite | None = None) -> SiteRecord:
        """A site that was granted by everyone."""
        request = self.asked(site)
        found = [self.grant(name, request) for name in self.operators][-1]
        assert found is not None
        return found
