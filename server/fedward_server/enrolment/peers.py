"""How often one address may call the enrolment listener."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Final
from urllib.parse import unquote

from fedward_common.channel.refusals import Refusal
from fedward_server.enrolment_rules import EnrolmentRefused

MOST_PEERS: Final = 4096


def peer_of(grpc_peer: str) -> str:
    """The network that a call came from, of grpc's `ipv4:192.0.2.1:4711`: a /64 for IPv6.

    Whoever has one IPv6 address usually has 2**64; they count as one.
    """
    text = unquote(grpc_peer).partition(":")[2].rpartition(":")[0].strip("[]")
    try:
        address = ip_address(text)
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return address.exploded[:19]
    return str(address)


@dataclass(kw_only=True, slots=True)
class Peers:
    """What each peer may do: `per_second` calls on average, `burst` at once, `places` under way.

    At most `MOST_PEERS` token buckets are kept; the fullest go first, which forgets nothing of use.
    """

    per_second: float = 1.0
    burst: float = 10.0
    places: int = 4
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)
    _under_way: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def place_of(self, peer: str) -> Iterator[None]:
        """A place for one call of `peer` while it lasts.

        Raises:
            EnrolmentRefused: RATE, it calls too often or has too many calls under way.
        """
        self.spend(peer)
        if self._under_way[peer] >= self.places:
            raise EnrolmentRefused(Refusal.RATE)
        self._under_way[peer] += 1
        try:
            yield
        finally:
            self._under_way[peer] -= 1
            if self._under_way[peer] == 0:
                del self._under_way[peer]

    def spend(self, peer: str) -> None:
        """Counts one call. Raises EnrolmentRefused(RATE) when there were too many."""
        now = self.clock()
        tokens = self._tokens(peer, now)
        if tokens < 1:
            self._buckets[peer] = (tokens, now)
            raise EnrolmentRefused(Refusal.RATE)
        self._buckets[peer] = (tokens - 1, now)
        if len(self._buckets) > MOST_PEERS:
            fullest = max(self._buckets, key=lambda known: self._tokens(known, now))
            del self._buckets[fullest]

    def _tokens(self, peer: str, now: float) -> float:
        tokens, last = self._buckets.get(peer, (self.burst, now))
        return min(self.burst, tokens + (now - last) * self.per_second)
