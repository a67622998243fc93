"""Enrolment from the invite to a site.toml, over the network or by carried files.

Each step is on disk before the next begins, and site.toml comes last: while it is missing, running
the command again goes on where it stopped, with the same keys.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedward_client.adapters.key_files import read_passphrase
from fedward_client.adapters.tls_pair import TlsPair
from fedward_client.enrol.answer import Answer
from fedward_client.enrol.installation import (
    Enrolment,
    configured,
    passphrase_file,
    placed,
    stored_grant,
)
from fedward_client.enrol.keys import (
    sign_with_next_key,
    site_request,
)
from fedward_client.enrol.pinned import pinned_root
from fedward_client.enrol.places import Places, SiteOptions
from fedward_client.peer import Target
from fedward_client.proxy import Proxy
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.channel.tls import require_tls13
from fedward_common.errors import (
    ChannelError,
    ConfigError,
    PolicyRefused,
    StartError,
)
from fedward_common.log.events import utc_now
from fedward_common.trust.enrolment import (
    MAX_REQUEST_BYTES,
    CarriedRequest,
    EnrolmentRequest,
    Grant,
    Invite,
)
from fedward_common.trust.private_files import write_atomically
from fedward_common.users import acting_as

if TYPE_CHECKING:
    from fedward_client.enrol.listener import Listener

ASK_SECONDS: Final = 5.0
LONGEST_WAIT: Final = 7 * 24 * 3600.0
FIRST_NOTE: Final = 60.0
MOST_SILENT: Final = 3600.0
"""Progress is told after a minute, then after twice as long, and at least every hour."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Time, as enrolment sees it."""

    clock: Callable[[], datetime] = utc_now
    sleep: Callable[[float], None] = time.sleep
    ask_seconds: float = ASK_SECONDS


def enrol(
    invite: Invite,
    places: Places,
    options: SiteOptions,
    *,
    say: Say,
    wait_seconds: float = LONGEST_WAIT,
    world: World = World(),
) -> Enrolment:
    """Makes this site a member over the network; safe to run again until it says so.

    Raises:
        ConfigError: the files here, the proxy or the passphrase are not in order.
        SignatureRefused: another root than the pinned one, or a grant that is not for this request.
        CallRefused: the coordinator's reason; ChannelError: no way to it.
        PolicyRefused: its operators denied the request.
        StartError: no answer within `wait_seconds`: run it again.
    """
    require_tls13()
    # rules 17: grpc reads its cipher list when it is imported, so the line above comes first.
    from fedward_client.enrol.listener import Listener  # noqa: PLC0415

    places.require_config()
    owner = places.owner()
    with acting_as(owner):
        grant = stored_grant(invite, places)
        if grant is None:
            proxy = Proxy.of(options.proxy, options.proxy_auth_file)
            request, pair = _prepare(invite, places, options, say=say)
            target = Target.of(invite.address, invite.server_name)
            root = pinned_root(target, root_sha256=invite.root_sha256, proxy=proxy)
            listener = Listener(target, root_pem=root, proxy=proxy)
            try:
                sign = sign_with_next_key(pair)

                def ask() -> Answer:
                    return listener.fetch(request.sha256, sign=sign, now=world.clock())

                _submit(listener, request, invite, ask=ask, say=say)
                grant = _wait(ask, site=request.site, say=say, limit=wait_seconds, world=world)
            finally:
                listener.close()
        peer = placed(grant, places, options, now=world.clock())
    return configured(grant, peer, places, options, owner=owner)


def write_request(
    invite: Invite, places: Places, options: SiteOptions, *, out: Path, say: Say
) -> EnrolmentRequest:
    """Writes the request to `out`, to be carried to the coordinator. It holds no secret.

    Raises:
        ConfigError: the files here or the passphrase are not in order, or `out` cannot be written.
    """
    places.require_config()
    with acting_as(places.owner()):
        request, _ = _prepare(invite, places, options, say=say)
    try:
        write_atomically(out, CarriedRequest.make(invite, request).canonical)
    except OSError as error:
        raise ConfigError(f"{out}: expected to write there, found {error.strerror}") from error
    return request


def install_grant(
    file: Path,
    places: Places,
    options: SiteOptions,
    *,
    world: World = World(),
) -> Enrolment:
    """Makes this site a member by the grant in `file`, which came by hand.

    Raises:
        ConfigError: no such file, or no request was made here.
        SignatureRefused, ProtocolError: the grant is not the answer to this site's request.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_REQUEST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: expected a grant, found {error.strerror}") from error
    grant, owner = Grant.parse(data), places.owner()
    places.require_config()
    with acting_as(owner):
        peer = placed(grant, places, options, now=world.clock())
    return configured(grant, peer, places, options, owner=owner)


def _prepare(
    invite: Invite, places: Places, options: SiteOptions, *, say: Say
) -> tuple[EnrolmentRequest, TlsPair]:
    places.make_folders()
    passphrase = read_passphrase(passphrase_file(places, options))
    request, pair = site_request(invite, places, passphrase=passphrase)
    say(f"{request.site} in {request.federation}: this request's fingerprint is")
    say(f"    {request.fingerprint_words}")
    say("Read it to the coordinator's operator over the telephone: both must see the same words.")
    return request, pair


def _submit(
    listener: "Listener",
    request: EnrolmentRequest,
    invite: Invite,
    *,
    ask: Callable[[], Answer],
    say: Say,
) -> None:
    """Hands the request in. One that the coordinator has already is asked after instead."""
    try:
        listener.submit(request, token=invite.token)
    except CallRefused as refused:
        if refused.refusal is Refusal.KEY_REUSED:
            raise CallRefused(
                refused.refusal,
                "a key of this site was used before. If it was revoked, move its node, signing and "
                "secure aggregation keys ([keys]) away and run this again: new ones are made, and "
                "studies that name the old ones must be signed again",
            ) from refused
        if refused.refusal is not Refusal.ALREADY_ENROLLED:
            raise
        try:
            ask()
        except CallRefused:
            raise refused from None
        say("The coordinator has this request already; asking for its answer.")
        return
    say("The request is handed in. Waiting for the coordinator's operators ...")


def _wait(
    ask: Callable[[], Answer],
    *,
    site: str,
    say: Say,
    limit: float,
    world: World,
) -> Grant:
    """The grant, once it is given. A line that is cut in between is waited out."""
    waited, told, cut = 0.0, FIRST_NOTE, False
    while True:
        try:
            answer = ask()
            cut = False
        except ChannelError as error:
            if isinstance(error, CallRefused) and error.refusal is not Refusal.RATE:
                raise
            if not cut:
                say(f"{error}. Trying again ...")
            answer, cut = Answer(status="waiting"), True
        if answer.status == "granted":
            return Grant.parse(answer.grant)
        if answer.status == "denied":
            raise PolicyRefused(
                f"enrolment of {site}: expected a grant, found that the coordinator's "
                "operators denied it. Ask them why; another try needs a new invite"
            )
        if waited >= limit:
            raise StartError(
                "enrolment: expected an answer by now, found none yet. Run the same command again "
                "later: it goes on with the same keys"
            )
        world.sleep(world.ask_seconds)
        waited += world.ask_seconds
        if waited >= told:
            say(f"Still waiting for the operators ({waited / 60:.0f} minutes) ...")
            told = min(2 * told, told + MOST_SILENT)
