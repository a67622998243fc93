"""What the coordinator says of itself, compared with this site: versions, clock, members."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from fedward_client.isolation.accounts import SiteAccounts
from fedward_client.settings import SiteSettings
from fedward_common.channel.tls import require_tls13
from fedward_common.doctor import Finding, fail, ok, warn
from fedward_common.errors import FedwardError
from fedward_common.users import acting_as

if TYPE_CHECKING:
    from fedward_client.gateway.greeting import Greeting

FATAL_SECONDS: Final = 240.0
"""Flower refuses a signature that is 300 s old: a clock this far off is as good as that."""


def greeting(settings: SiteSettings) -> Iterator[Finding]:
    """Asks the coordinator as the gateway does every hour."""
    try:
        require_tls13()
        # rules 17: grpc reads its cipher list when it is imported, so the line above comes first.
        from fedward_client.gateway.greeting import own_versions  # noqa: PLC0415

        ours = own_versions()
        # Root asks as the gateway does, whose the TLS key is.
        with acting_as(SiteAccounts.of(settings).gateway):
            found = asyncio.run(_ask(settings, ours))
    except FedwardError as error:
        fix = "Ask the operator: the coordinator's log says why it refused"
        yield fail("coordinator.hello", " ".join(str(error).split()), fix)
        return
    yield clock("coordinator.clock", found)
    yield agreement("coordinator.versions", found, ours)
    if found.revoked:
        yield ok("coordinator.members", f"revoked: {', '.join(found.revoked)}")


async def _ask(settings: SiteSettings, versions: dict[str, str]) -> "Greeting":
    from fedward_client.gateway.channel import EdgeChannel  # noqa: PLC0415 - as in `greeting`

    channel = EdgeChannel.of(settings)
    try:
        return await channel.hello(versions)
    finally:
        await channel.close()


def clock(name: str, found: "Greeting") -> Finding:
    """Whether both clocks agree; signatures and certificates are refused when they do not."""
    apart = abs(found.skew_seconds)
    fix = "Have both machines follow a time server (timedatectl set-ntp true)"
    if apart > FATAL_SECONDS:
        return fail(name, f"{apart:.0f} s apart: calls are refused", fix)
    if not found.clocks_agree:
        return warn(name, f"{apart:.0f} s apart", fix)
    return ok(name, f"{apart:.1f} s apart")


def agreement(name: str, found: "Greeting", ours: dict[str, str]) -> Finding:
    """Whether both sides run the same versions of what they have in common."""
    if not found.versions:
        return warn(name, "the coordinator tells none", "Ask the operator to update Fedward")
    if different := found.differing(ours):
        told = ", ".join(
            f"{key} {there} there, {ours[key]} here" for key, there in different.items()
        )
        return warn(name, told, "Install the same release of Fedward on both sides")
    return ok(name, ", ".join(f"{key} {value}" for key, value in sorted(found.versions.items())))
