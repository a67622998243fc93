"""`Hello`: the coordinator's versions and clock, and which sites are no longer members."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final, Protocol

from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.ids import SiteId
from fedward_server.ports import EventSink, SiteRecord, SiteStatus

DISTRIBUTIONS: Final = ("fedward-server", "fedward-common", "flwr", "grpcio")
OWN: Final = "fedward-client"
MAX_VERSIONS: Final = 16

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
_VERSION: Final = re.compile(r"[0-9][0-9A-Za-z.+-]{0,31}")


class Members(Protocol):
    """The registry, as far as members may know it."""

    def sites(self) -> list[SiteRecord]:
        """Every site, revoked ones too."""
        ...


def installed_versions() -> dict[str, str]:
    """What this coordinator runs."""
    return {name: version(name) for name in DISTRIBUTIONS}


@dataclass(kw_only=True, slots=True)
class Greeting:
    """Answers `Hello`; writes a site's version down when it first says it, and when it changes."""

    members: Members
    log: EventSink
    clock: Callable[[], float] = time.time
    versions: Mapping[str, str] = field(default_factory=installed_versions)
    _known: dict[SiteId, str] = field(default_factory=dict)

    def answer(self, record: SiteRecord, request: wire.HelloRequest) -> wire.HelloReply:
        """The coordinator's versions and time, and the ids of revoked sites.

        Raises:
            CallRefused: MALFORMED; the versions are not those of distributions.
        """
        said = dict(request.versions)
        if len(said) > MAX_VERSIONS or not all(
            _NAME.fullmatch(name) and _VERSION.fullmatch(text) for name, text in said.items()
        ):
            raise CallRefused(Refusal.MALFORMED, "expected versions of distributions")
        if (own := said.get(OWN, "")) and self._known.get(record.site_id) != own:
            self._known[record.site_id] = own
            self.log.append("edge.site-version", site=record.site_id, version=own.replace("+", "-"))
        return wire.HelloReply(
            versions=dict(self.versions),
            time=self.clock(),
            revoked=sorted(
                site.site_id for site in self.members.sites() if site.status is SiteStatus.REVOKED
            ),
        )
