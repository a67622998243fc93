"""A site's side of one round: a state machine without I/O, whose secrets live in memory only.

Source: Bonawitz et al. 2017, the protocol of figure 4 for a malicious server (double masking on the
complete graph, signed keys, consistency round). A site that restarts has no secrets any more and
counts as dropped.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedward_common.canonical import sha256_hex
from fedward_common.errors import SignatureRefused
from fedward_common.ids import SiteId
from fedward_common.secagg.fixedpoint import Ring
from fedward_common.secagg.masks import Mask, add_masks, agree, derive, public_of
from fedward_common.secagg.messages import (
    Advert,
    Envelopes,
    Session,
    SurvivorSignature,
    Unmasking,
    survivors_bytes,
)
from fedward_common.secagg.refusals import Reason, SecAggRefused
from fedward_common.secagg.shares import SECRET_BYTES, SHARE_BYTES, RandomBytes, split
from fedward_common.secagg.thresholds import Thresholds
from fedward_common.trust.signing import verify

NONCE_BYTES: Final = 12
_ANY_SCALAR: Final = bytes(31) + b"\x01"
"""X25519 of a key of small order is zero with every scalar (RFC 7748 section 6.1), so also here."""
Claim = Callable[[], bool]
"""Durably notes that this round is unmasked; False when it was noted before."""


class Signer(Protocol):
    """The site's Ed25519 key for secure aggregation."""

    @property
    def public_hex(self) -> str:
        """The public key: 32 raw bytes in hexadecimal."""
        ...

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`."""
        ...


class Phase(IntEnum):
    """What a participant has done last."""

    NEW = 0
    ADVERTISED = 1
    SHARED = 2
    MASKED = 3
    SIGNED = 4
    UNMASKED = 5
    REFUSED = 6


@dataclass(kw_only=True, slots=True, repr=False)
class Participant:
    """One site in one round. Steps in order; any refusal ends the round for this site.

    What it guarantees against a coordinator that lies: keys are those of the study's roster; a
    masked vector is sent once; shares of one site are given for its own mask or for its mask key,
    never both, for one survivor list that T sites signed, once, also over restarts (`claim`).
    """

    session: Session
    site: SiteId
    key: Signer
    thresholds: Thresholds
    random_bytes: RandomBytes
    claim: Claim
    phase: Phase = Phase.NEW
    _mask_private: bytes = b""
    _share_private: bytes = b""
    _own_mask: bytes = b""
    _advert: Advert | None = None
    _adverts: dict[str, Advert] = field(default_factory=dict)
    _held: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    _sharers: tuple[str, ...] = ()
    _survivors: tuple[str, ...] = ()
    _bound: str = ""

    def advertise(self) -> Advert:
        """Fresh keys under the site's signature."""
        self._step(Phase.NEW, Phase.ADVERTISED)
        if self.session.key_of(self.site) != self.key.public_hex:
            raise self._refused(Reason.WRONG_KEY, "expected this site's key in the roster")
        self._mask_private = self.random_bytes(SECRET_BYTES)
        self._share_private = self.random_bytes(SECRET_BYTES)
        self._own_mask = self.random_bytes(SECRET_BYTES)
        unsigned = Advert(
            site=self.site,
            round=self.session.round,
            mask_key=public_of(self._mask_private).hex(),
            share_key=public_of(self._share_private).hex(),
            own_mask_sha256=commitment(self.session, self._own_mask),
        )
        signature = self.key.sign(unsigned.signed_bytes(self.session)).hex()
        self._advert = unsigned.model_copy(update={"signature": signature})
        return self._advert

    def share(self, adverts: Sequence[Advert]) -> Envelopes:
        """Encrypted shares of both secrets for every other site that advertised.

        Verifies each advert against the roster, that this site's own came back unchanged, that no
        key occurs twice, and that there are at least max(T, 3).
        """
        self._step(Phase.ADVERTISED, Phase.SHARED)
        self._adverts = self._verified(adverts)
        numbers = {site: self.session.number(site) for site in self._adverts}
        holders = len(self.session.members)
        mask_key, own_mask = (
            split(
                secret,
                holders=holders,
                threshold=self.thresholds.threshold,
                random_bytes=self.random_bytes,
            )
            for secret in (self._mask_private, self._own_mask)
        )
        own = numbers[self.site]
        self._held[self.site] = (mask_key[own], own_mask[own])
        return Envelopes(
            site=self.site,
            boxes={
                site: self._seal(site, mask_key[number] + own_mask[number]).hex()
                for site, number in numbers.items()
                if site != self.site
            },
        )

    def mask(self, boxes: Mapping[str, str], residues: Ring, *, bound: str = "") -> Ring:
        """`residues` under this site's masks, written over them: what the coordinator may see.

        `boxes`: by sender, the envelope meant for this site. Those senders and this site are the
        ones whose pairwise masks are in the vector. `bound` names what the vector answers (the
        instruction's key): masks cancel, and signatures count, only among sites that answered the
        same. A coordinator that gives one site another model learns no sum at all.
        """
        self._step(Phase.SHARED, Phase.MASKED)
        self._held |= self._shares_in(boxes)
        self._sharers = tuple(site for site in self._adverts if site in self._held)
        self._bound = bound
        add_masks(residues, self._masks())
        return residues

    def require_boxes(self, boxes: Mapping[str, str]) -> None:
        """Returns when `mask` could be asked for with these envelopes; nothing of them is kept.

        Asked before the round is charged: an envelope that another site damaged costs no patient.
        """
        if self.phase is not Phase.SHARED:
            raise SecAggRefused(Reason.PHASE, "expected to have shared, and no more")
        self._shares_in(boxes)

    def _shares_in(self, boxes: Mapping[str, str]) -> dict[str, tuple[bytes, bytes]]:
        """The two shares in each envelope, by sender."""
        found: dict[str, tuple[bytes, bytes]] = {}
        for sender, box in boxes.items():
            if sender == self.site or sender not in self._adverts:
                raise self._refused(Reason.UNKNOWN_SITE, "expected a sender that advertised")
            plain = self._open(sender, box)
            found[sender] = (plain[:SHARE_BYTES], plain[SHARE_BYTES:])
        if len(found) + 1 < self.thresholds.fewest_survivors:
            raise self._refused(
                Reason.TOO_FEW_SITES,
                f"expected shares of {self.thresholds.fewest_survivors} sites, found "
                f"{len(found) + 1}",
            )
        return found

    def _masks(self) -> list[Mask]:
        """The own mask, and one shared with each other site: the lower number adds it."""
        own = self.session.number(self.site)
        masks: list[Mask] = [(own_mask_key(self.session, self._own_mask), 1)]
        for other in self._sharers:
            if other != self.site:
                key = pair_key(
                    self.session,
                    self._agreed(self._mask_private, self._adverts[other].mask_key),
                    pair=(self.site, other),
                    bound=self._bound,
                )
                masks.append((key, 1 if self.session.number(other) > own else -1))
        return masks

    def sign_survivors(self, survivors: Sequence[str]) -> SurvivorSignature:
        """The signature of the one survivor list that this site accepts in this round."""
        self._step(Phase.MASKED, Phase.SIGNED)
        self._check_survivors(survivors)
        self._survivors = tuple(survivors)
        signature = self.key.sign(survivors_bytes(self.session, survivors, bound=self._bound)).hex()
        return SurvivorSignature(site=self.site, survivors=self._survivors, signature=signature)

    def unmask(self, signatures: Sequence[SurvivorSignature]) -> Unmasking:
        """The shares that open the sum over the survivors, after T of them signed the same list.

        In semi-honest mode the list was accepted in `sign_survivors` and no signature is wanted.
        """
        self._step(Phase.SIGNED, Phase.UNMASKED)
        if self.thresholds.mode == "malicious":
            self._check_signatures(signatures)
        if not self.claim():
            raise self._refused(
                Reason.ANSWERED_BEFORE, "expected a round that was not unmasked, found one that was"
            )
        lost = [site for site in self._sharers if site not in self._survivors]
        return Unmasking(
            site=self.site,
            own_masks={site: self._held[site][1].hex() for site in self._survivors},
            mask_keys={site: self._held[site][0].hex() for site in lost},
        )

    def _verified(self, adverts: Sequence[Advert]) -> dict[str, Advert]:
        found: dict[str, Advert] = {}
        for advert in adverts:
            if advert.round != self.session.round:
                raise self._refused(Reason.OTHER_ROUND, "expected an advert of this round")
            if advert.site in found:
                raise self._refused(Reason.REPEATED_KEY, "expected one advert of a site")
            try:
                public = self.session.key_of(advert.site)
                verify(public, bytes.fromhex(advert.signature), advert.signed_bytes(self.session))
            except SignatureRefused as error:
                raise self._refused(
                    Reason.SIGNATURE, f"expected {advert.site}'s signature, found another"
                ) from error
            try:
                require_sound_keys(advert, found.values())
            except SecAggRefused as error:
                raise self._refused(
                    error.reason, "expected keys that are new", site=advert.site
                ) from error
            found[advert.site] = advert
        if found.get(self.site) != self._advert:
            raise self._refused(Reason.OWN_ADVERT_CHANGED, "expected this site's own advert back")
        if len(found) < self.thresholds.fewest_survivors:
            raise self._refused(
                Reason.TOO_FEW_SITES,
                f"expected {self.thresholds.fewest_survivors} sites, found {len(found)}",
            )
        return dict(sorted(found.items(), key=lambda item: self.session.number(item[0])))

    def _check_survivors(self, survivors: Sequence[str]) -> None:
        if len(set(survivors)) != len(survivors) or not set(survivors) <= set(self._sharers):
            raise self._refused(Reason.SURVIVORS, "expected sites that shared, each once")
        if self.site not in survivors:
            raise self._refused(Reason.SURVIVORS, "expected this site among the survivors")
        if len(survivors) < self.thresholds.fewest_survivors:
            raise self._refused(
                Reason.TOO_FEW_SURVIVORS,
                f"expected {self.thresholds.fewest_survivors} survivors, found {len(survivors)}",
            )

    def _check_signatures(self, signatures: Sequence[SurvivorSignature]) -> None:
        """T survivors, this site among them or not, signed this very list."""
        text = survivors_bytes(self.session, self._survivors, bound=self._bound)
        signed: set[str] = set()
        for one in signatures:
            if one.site not in self._survivors or one.survivors != self._survivors:
                raise self._refused(Reason.SURVIVORS, "expected signatures of the list it signed")
            try:
                verify(self.session.key_of(one.site), bytes.fromhex(one.signature), text)
            except SignatureRefused as error:
                raise self._refused(
                    Reason.SIGNATURE, f"expected {one.site}'s signature, found another"
                ) from error
            signed.add(one.site)
        if len(signed) < self.thresholds.threshold:
            raise self._refused(
                Reason.TOO_FEW_SIGNATURES,
                f"expected {self.thresholds.threshold} signatures of the survivor list, found "
                f"{len(signed)}",
            )

    def _seal(self, receiver: str, plain: bytes) -> bytes:
        nonce = self.random_bytes(NONCE_BYTES)
        context = self._box_context(self.site, receiver)
        return nonce + AESGCM(self._box_key(receiver, context)).encrypt(nonce, plain, context)

    def _open(self, sender: str, box: str) -> bytes:
        data, context = bytes.fromhex(box), self._box_context(sender, self.site)
        try:
            plain = AESGCM(self._box_key(sender, context)).decrypt(
                data[:NONCE_BYTES], data[NONCE_BYTES:], context
            )
        except (InvalidTag, ValueError) as error:
            raise self._refused(
                Reason.ENVELOPE,
                f"expected {sender}'s shares for this site, found another text",
                site=sender,
            ) from error
        if len(plain) != 2 * SHARE_BYTES:
            raise self._refused(
                Reason.ENVELOPE, f"expected two shares of {sender}, found others", site=sender
            )
        return plain

    def _box_context(self, sender: str, receiver: str) -> bytes:
        return self.session.context("share") + f"{sender}>{receiver}".encode()

    def _box_key(self, other: str, context: bytes) -> bytes:
        return derive(self._agreed(self._share_private, self._adverts[other].share_key), context)

    def _agreed(self, private: bytes, public: str) -> bytes:
        try:
            return agree(private, bytes.fromhex(public))
        except SecAggRefused as error:
            raise self._refused(error.reason, "expected X25519 keys, found another") from error

    def _step(self, expected: Phase, following: Phase) -> None:
        if self.phase is not expected:
            raise self._refused(
                Reason.PHASE, f"expected to be {expected.name.lower()}, found {self.phase.name}"
            )
        self.phase = following

    def _refused(self, reason: Reason, text: str, *, site: str = "") -> SecAggRefused:
        """The refusal to raise; from here on this site takes no further part in the round."""
        self.phase = Phase.REFUSED
        self._mask_private = self._share_private = self._own_mask = b""
        self._held.clear()
        return SecAggRefused(reason, text, site=site)


def require_sound_keys(advert: Advert, before: Iterable[Advert]) -> None:
    """Returns when the two keys of an advert can be used beside those of the adverts `before`.

    Both differ from each other and from all before, and neither is of small order. Whoever sends
    others ends the sum for every site that uses them, so the coordinator passes none on.

    Raises:
        SecAggRefused: REPEATED_KEY or WRONG_KEY; `site` is whose advert it is.
    """
    keys = (advert.mask_key, advert.share_key)
    seen = {key for one in before for key in (one.mask_key, one.share_key)}
    if keys[0] == keys[1] or seen & set(keys):
        raise SecAggRefused(
            Reason.REPEATED_KEY, f"expected new keys of {advert.site}", site=advert.site
        )
    for key in keys:
        try:
            agree(_ANY_SCALAR, bytes.fromhex(key))
        except SecAggRefused as error:
            raise SecAggRefused(
                error.reason,
                f"expected X25519 keys of {advert.site}, found another",
                site=advert.site,
            ) from error


def commitment(session: Session, own_mask: bytes) -> str:
    """What an advert says of the own mask: a hash that tells a right secret from a wrong one."""
    return sha256_hex(session.context("commit") + own_mask)


def own_mask_key(session: Session, own_mask: bytes) -> bytes:
    """The key of a site's own mask."""
    return derive(own_mask, session.context("own-mask"))


def pair_key(session: Session, secret: bytes, *, pair: tuple[str, str], bound: str = "") -> bytes:
    """The key of the mask that two sites share, the same for both if both answer `bound`."""
    first, second = sorted(pair)
    answered = f"|{bound}" if bound else ""
    return derive(secret, session.context("pair-mask") + f"{first}+{second}{answered}".encode())
