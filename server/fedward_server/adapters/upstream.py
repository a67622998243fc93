"""SuperLink over HTTPS, through the Unix socket that leads into its private network."""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx

from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import (
    MAX_BODY_BYTES,
    MEDIA_TYPE,
    PATH_PREFIX,
    CallRefused,
    reply_headers,
)
from fedward_server.ports import FleetReply

TIMEOUT_SECONDS: Final = 25.0
"""Below SuperNode's own 30 s, so that it hears of a slow SuperLink and does not guess."""


class SuperLinkUpstream:
    """Implements `Upstream` with one pool of kept-alive connections.

    Trusts the loopback identity's root only and no proxy setting of the environment.
    """

    def __init__(self, *, socket: Path, port: int, ca: Path) -> None:
        """`socket` is the bridge's; `port` is SuperLink's own, in its network."""
        self._client = httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{port}{PATH_PREFIX}",
            transport=httpx.AsyncHTTPTransport(
                uds=str(socket),
                verify=ssl.create_default_context(cafile=ca),
                trust_env=False,
                limits=httpx.Limits(max_connections=64, max_keepalive_connections=64),
            ),
            trust_env=False,
            timeout=TIMEOUT_SECONDS,
            follow_redirects=False,
        )

    async def call(self, route: str, headers: Mapping[str, str], body: bytes) -> FleetReply:
        """The answer to one Fleet operation.

        Raises:
            CallRefused: UPSTREAM, nothing answered; BODY_TOO_LARGE, the answer is over 8 MiB.
        """
        sent = {**headers, "content-type": MEDIA_TYPE, "accept": MEDIA_TYPE}
        try:
            async with self._client.stream("POST", route, headers=sent, content=body) as response:
                content = await _limited(response)
        except httpx.HTTPError as error:
            raise CallRefused(
                Refusal.UPSTREAM, f"expected SuperLink to answer, found {type(error).__name__}"
            ) from error
        return FleetReply(
            status=response.status_code, headers=reply_headers(response.headers), body=content
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()


async def _limited(response: httpx.Response) -> bytes:
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) > MAX_BODY_BYTES:
            raise CallRefused(
                Refusal.BODY_TOO_LARGE,
                f"expected at most {MAX_BODY_BYTES} bytes from SuperLink, found more",
            )
    return bytes(content)
