"""`fedward-client model`: the commands, over a connection with the site's own certificate."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from fedward_client.gateway.offers import ModelOffer
from fedward_client.guard.client import GuardClient
from fedward_client.isolation.accounts import SiteAccounts
from fedward_client.models import Fetched, ModelChannel, ModelFetcher, Progress, choose
from fedward_client.models import approved_studies as approved
from fedward_client.ports import Passing
from fedward_client.settings import SiteSettings
from fedward_common.channel.tls import require_tls13
from fedward_common.users import acting_as

T = TypeVar("T")


def list_models(settings: SiteSettings) -> tuple[ModelOffer, ...]:
    """What the coordinator offers this site.

    Raises:
        ConfigError: a key or a certificate is not in order. ChannelError: no answer, or refused.
    """
    return _connected(settings, lambda channel: channel.models())


def fetch_model(
    settings: SiteSettings, which: str, *, out: Path, progress: Progress = lambda _done, _size: None
) -> Fetched:
    """The model package of a run (or of a study's only run) in a folder under `out`, verified.

    Raises:
        FedwardError: as `ModelFetcher.fetch` and `choose`.
    """

    async def fetch(channel: ModelChannel) -> Fetched:
        fetcher = ModelFetcher(
            channel=channel,
            journal=GatewaysJournal(settings),
            approved=approved(settings),
            out=out,
            progress=progress,
        )
        return await fetcher.fetch(choose(await channel.models(), which))

    return _connected(settings, fetch)


class GatewaysJournal:
    """The guard's journal, asked as the gateway's user: the guard hears nobody else there."""

    def __init__(self, settings: SiteSettings) -> None:
        self._guard = GuardClient(settings.gateway_socket)
        self._account = SiteAccounts.of(settings).gateway

    def journal(self, passing: Passing) -> None:
        """Writes down one object; on disk when this returns."""
        with acting_as(self._account):
            self._guard.journal(passing)


def _connected(settings: SiteSettings, ask: Callable[[ModelChannel], Awaitable[T]]) -> T:
    require_tls13()
    # rules 17: grpc reads its cipher list when it is imported, so the line above comes first.
    from fedward_client.gateway.channel import EdgeChannel  # noqa: PLC0415

    async def connected() -> T:
        # The gateway's key is for the gateway's user alone, even where root types this.
        with acting_as(SiteAccounts.of(settings).gateway):
            channel = EdgeChannel.of(settings)
        try:
            return await ask(channel)
        finally:
            await channel.close()

    return asyncio.run(connected())
