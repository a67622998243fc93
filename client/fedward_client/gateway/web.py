"""The gateway's local face: the twelve Fleet operations for SuperNode, over HTTPS."""

from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from fedward_client.gateway.fleet import Answer
from fedward_client.gateway.passage import Gateway
from fedward_common.channel.routes import MAX_BODY_BYTES, MEDIA_TYPE, PATH_PREFIX

MAX_DRAINED_BYTES: Final = 64 << 20
"""A body that is too large is read to here and thrown away: a client that is cut off in mid-body
would take it for a broken line and send it again."""


_log = structlog.get_logger(__name__)


def make_app(gateway: Gateway) -> Starlette:
    """The application; every other path and method is 404 or 405."""

    async def fleet(request: Request) -> Response:
        try:
            body = await _body(request)
        except ClientDisconnect:
            return Response(status_code=503)
        route: str = request.path_params["route"]
        return _response(await gateway.handle(route, dict(request.headers), body))

    return Starlette(
        routes=[Route(PATH_PREFIX + "{route}", fleet, methods=["POST"])],
        exception_handlers={Exception: _defect},
    )


def _defect(_request: Request, error: Exception) -> Response:
    """A defect of ours is 503 as well, because SuperNode would not survive a 500; only its type
    is named.
    """
    _log.error("gateway.defect", error=type(error).__name__)
    return Response(status_code=503)


async def _body(request: Request) -> bytes:
    """The body, or its first bytes beyond the limit when it is too large."""
    kept, total = bytearray(), 0
    async for part in request.stream():
        total += len(part)
        if len(kept) <= MAX_BODY_BYTES:
            kept += part
        if total > MAX_DRAINED_BYTES:
            break
    return bytes(kept)


def _response(answer: Answer) -> Response:
    return Response(
        content=answer.body,
        status_code=answer.status,
        headers=dict(answer.headers),
        media_type=MEDIA_TYPE,
    )
