"""The coordinator's side of one round: relays, adds masked vectors, and opens their sum only.

It holds nobody's secrets before the survivors open the sum, and then only those of own masks of
survivors and of the mask keys of sites that are not in the sum.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fedward_common.errors import SignatureRefused
from fedward_common.secagg.fixedpoint import Ring
from fedward_common.secagg.masks import Mask, add_all, agree, public_of
from fedward_common.secagg.messages import (
    Advert,
    Envelopes,
    Session,
    SurvivorSignature,
    Unmasking,
    survivors_bytes,
)
from fedward_common.secagg.participant import (
    commitment,
    own_mask_key,
    pair_key,
    require_sound_keys,
)
from fedward_common.secagg.refusals import Reason, SecAggRefused
from fedward_common.secagg.shares import combine
from fedward_common.secagg.thresholds import Thresholds
from fedward_common.trust.signing import verify

MOST_WAITING: Final = 3
"""Vectors that wait to be added in one go, and the last ones with the masks: half the way through
the memory that adding each by itself takes. The coordinator never holds more, and their sum."""


@dataclass(kw_only=True, slots=True)
class Coordinator:
    """Collects one round; every `take_*` refuses what a site may not send, and loses only that.

    `size` and `dtype` are the public length and ring of the vectors, `bound` what they answer. The
    sum is written to `room` where that fits it: an earlier one that nobody needs any more.
    """

    session: Session
    thresholds: Thresholds
    size: int
    dtype: type[np.uint32] | type[np.uint64]
    bound: str = ""
    room: Ring | None = None
    _adverts: dict[str, Advert] = field(default_factory=dict)
    _boxes: dict[str, Mapping[str, str]] = field(default_factory=dict)
    _total: Ring | None = None
    _waiting: list[Ring] = field(default_factory=list)
    _opened: bool = False
    _masked: list[str] = field(default_factory=list)
    _survivors: tuple[str, ...] = ()
    _signatures: dict[str, SurvivorSignature] = field(default_factory=dict)
    _unmaskings: dict[str, Unmasking] = field(default_factory=dict)
    _liars: set[str] = field(default_factory=set)

    def take_advert(self, advert: Advert) -> None:
        """Takes one site's keys, verified by the roster and fit for use."""
        if advert.round != self.session.round or advert.site in self._adverts or self._boxes:
            raise SecAggRefused(Reason.PHASE, "expected one advert of a site, before any shares")
        self._verify(advert.site, advert.signature, advert.signed_bytes(self.session))
        require_sound_keys(advert, self._adverts.values())
        self._adverts[advert.site] = advert

    def adverts(self) -> tuple[Advert, ...]:
        """What every site that advertised gets. Raises SecAggRefused below the fewest sites."""
        self._enough(len(self._adverts), Reason.TOO_FEW_SITES)
        return tuple(self._adverts[site] for site in self._ordered(self._adverts))

    def take_envelopes(self, envelopes: Envelopes) -> None:
        """Takes one site's encrypted shares for all the others."""
        others = set(self._adverts) - {envelopes.site}
        if envelopes.site not in self._adverts or envelopes.site in self._boxes or self._masked:
            raise SecAggRefused(Reason.PHASE, "expected shares of a site that advertised, once")
        if set(envelopes.boxes) != others:
            raise SecAggRefused(Reason.SHARES, "expected one envelope for each other site")
        self._boxes[envelopes.site] = envelopes.boxes

    @property
    def sharers(self) -> tuple[str, ...]:
        """The sites that shared: a set-up is theirs, and only their vectors are taken."""
        return self._ordered(self._boxes)

    def boxes_for(self, site: str) -> dict[str, str]:
        """The envelopes that `site` may open, by sender."""
        self._enough(len(self._boxes), Reason.TOO_FEW_SITES)
        senders = self._ordered(self._boxes)
        return {sender: self._boxes[sender][site] for sender in senders if sender != site}

    def take_masked(self, site: str, masked: Ring) -> None:
        """Takes one site's masked vector into the sum; the caller must not change it any more.

        At most `MOST_WAITING` vectors are kept: they are added together, which spares the memory.
        """
        if site not in self._boxes or site in self._masked or self._survivors:
            raise SecAggRefused(Reason.PHASE, "expected one vector of a site that shared")
        if masked.shape != (self.size,) or masked.dtype != self.dtype:
            raise SecAggRefused(
                Reason.VECTOR, f"expected {self.size} residues of {self.dtype.__name__}"
            )
        if len(self._waiting) == MOST_WAITING:
            self._total = self._added(())
        self._waiting.append(masked)
        self._masked.append(site)

    def _added(self, masks: Sequence[Mask]) -> Ring:
        """The sum so far with what waits and `masks`; nothing waits any more."""
        waiting, self._waiting = self._waiting, []
        if self._total is not None:
            add_all(self._total, waiting, masks)
            return self._total
        total = self.room
        if total is None or total.shape != (self.size,) or total.dtype != self.dtype:
            total = np.empty(self.size, dtype=self.dtype)
        add_all(total, waiting, masks, over=True)
        return total

    def close(self) -> tuple[str, ...]:
        """The survivor list: from here on no vector is taken. Raises SecAggRefused if too short."""
        if not self._survivors:
            self._enough(len(self._masked), Reason.TOO_FEW_SURVIVORS)
            self._survivors = self._ordered(self._masked)
        return self._survivors

    def take_signature(self, signature: SurvivorSignature) -> None:
        """Takes one survivor's signature of the list."""
        if signature.site not in self._survivors or signature.survivors != self._survivors:
            raise SecAggRefused(Reason.SURVIVORS, "expected a survivor's signature of the list")
        text = survivors_bytes(self.session, self._survivors, bound=self.bound)
        self._verify(signature.site, signature.signature, text)
        self._signatures[signature.site] = signature

    def signatures(self) -> tuple[SurvivorSignature, ...]:
        """What every survivor gets. Raises SecAggRefused below T signatures."""
        if len(self._signatures) < self.thresholds.threshold:
            raise SecAggRefused(
                Reason.TOO_FEW_SIGNATURES,
                f"expected {self.thresholds.threshold} signatures, found {len(self._signatures)}",
            )
        return tuple(self._signatures[site] for site in self._ordered(self._signatures))

    @property
    def signers(self) -> tuple[str, ...]:
        """The survivors that signed the list: who may be asked for shares."""
        return self._ordered(self._signatures)

    def take_unmasking(self, unmasking: Unmasking) -> None:
        """Takes one survivor's shares: exactly those that the list asks for."""
        lost = set(self._boxes) - set(self._survivors)
        if unmasking.site not in self._survivors or unmasking.site in self._unmaskings:
            raise SecAggRefused(Reason.PHASE, "expected the shares of a survivor, once")
        if set(unmasking.own_masks) != set(self._survivors) or set(unmasking.mask_keys) != lost:
            raise SecAggRefused(Reason.SHARES, "expected one share for every site, found others")
        self._unmaskings[unmasking.site] = unmasking

    @property
    def can_open(self) -> bool:
        """Whether T survivors sent their shares."""
        return len(self._unmaskings) >= self.thresholds.threshold

    def sum(self) -> Ring:
        """The sum of the survivors' vectors, unmasked. Can be asked for once.

        Raises:
            SecAggRefused: too few shares, or shares that give no secret that a site committed to.
        """
        if self._opened or not self.can_open:
            raise SecAggRefused(Reason.SHARES, "expected shares of T survivors, found fewer")
        masks: list[Mask] = []
        for site in self._survivors:
            own_mask = self._rebuilt(site, "own_masks", fits=self._is_own_mask)
            masks.append((own_mask_key(self.session, own_mask), -1))
        for site in self._ordered(set(self._boxes) - set(self._survivors)):
            private = self._rebuilt(site, "mask_keys", fits=self._is_mask_key)
            masks += self._masks_with(site, private)
        self._opened = True
        total, self._total = self._added(masks), None
        return total

    def _masks_with(self, lost: str, private: bytes) -> Iterator[Mask]:
        """What takes out the masks that survivors share with a site whose vector is not there."""
        for site in self._survivors:
            secret = agree(private, bytes.fromhex(self._adverts[site].mask_key))
            key = pair_key(self.session, secret, pair=(site, lost), bound=self.bound)
            added = self.session.number(lost) > self.session.number(site)
            yield key, -1 if added else 1

    def _is_own_mask(self, site: str, secret: bytes) -> bool:
        return commitment(self.session, secret) == self._adverts[site].own_mask_sha256

    def _is_mask_key(self, site: str, secret: bytes) -> bool:
        return public_of(secret).hex() == self._adverts[site].mask_key

    def _rebuilt(self, site: str, kind: str, *, fits: Callable[[str, bytes], bool]) -> bytes:
        """The secret that `site` committed to, of the shares that survivors sent.

        One survivor that sends a wrong share is found by leaving out one at a time, and left out of
        the secrets after that; two that lie about the same secret are not.
        """
        shares = {
            holder: bytes.fromhex(getattr(unmasking, kind)[site])
            for holder, unmasking in self._unmaskings.items()
            if holder not in self._liars
        }
        for left_out in (None, *self._ordered(shares)):
            tried = {self.session.number(h): s for h, s in shares.items() if h != left_out}
            if len(tried) < self.thresholds.threshold:
                break
            secret = _combined(tried, threshold=self.thresholds.threshold)
            if secret is not None and fits(site, secret):
                self._liars |= set() if left_out is None else {left_out}
                return secret
        raise SecAggRefused(Reason.SHARES, f"expected the secret that {site} committed to")

    @property
    def liars(self) -> tuple[str, ...]:
        """The survivors whose shares did not fit; the sum was opened without them."""
        return self._ordered(self._liars)

    def _verify(self, site: str, signature: str, text: bytes) -> None:
        try:
            verify(self.session.key_of(site), bytes.fromhex(signature), text)
        except SignatureRefused as error:
            raise SecAggRefused(
                Reason.SIGNATURE, f"expected {site}'s signature, found another"
            ) from error

    def _enough(self, found: int, reason: Reason) -> None:
        if found < self.thresholds.fewest_survivors:
            raise SecAggRefused(
                reason, f"expected {self.thresholds.fewest_survivors} sites, found {found}"
            )

    def _ordered(self, sites: Sequence[str] | Mapping[str, object] | set[str]) -> tuple[str, ...]:
        return tuple(m.site for m in self.session.members if m.site in sites)


def _combined(shares: Mapping[int, bytes], *, threshold: int) -> bytes | None:
    """The secret of these shares; None where they are no shares of one."""
    try:
        return combine(shares, threshold=threshold)
    except SecAggRefused:
        return None
