"""A whole round of secure aggregation in one process, with sites lost where a test wants it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedward_common.canonical import sha256_hex
from fedward_common.ids import Digest, SiteId
from fedward_common.secagg.coordinator import Coordinator
from fedward_common.secagg.fixedpoint import Ring
from fedward_common.secagg.messages import Member, Session
from fedward_common.secagg.participant import Participant
from fedward_common.secagg.thresholds import Mode, Thresholds
from fedward_common.trust.signing import SigningKey

STUDY = Digest(sha256_hex(b"a study for tests"))


def stream(seed: int) -> Callable[[int], bytes]:
    """Repeatable bytes: what shipped code must not offer."""
    return np.random.default_rng(seed).bytes


@dataclass(kw_only=True)
class Round:
    """The parties of one round; sites are s1..sn."""

    sites: int
    mode: Mode = "malicious"
    number: int = 1
    size: int = 10
    dtype: type[np.uint32] | type[np.uint64] = np.uint32
    seed: int = 0
    keys: list[SigningKey] = field(default_factory=list)
    claimed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.keys = self.keys or [SigningKey.generate() for _ in range(self.sites)]
        members = tuple(
            Member(site=SiteId(f"s{number}"), public_key=key.public_hex)
            for number, key in enumerate(self.keys, start=1)
        )
        self.session = Session(study=STUDY, round=self.number, members=members)
        self.thresholds = Thresholds.of(self.sites, mode=self.mode)
        self.parties = {
            member.site: self.participant(member.site, key, seed=self.seed + place)
            for place, (member, key) in enumerate(zip(members, self.keys, strict=True))
        }
        self.coordinator = Coordinator(
            session=self.session, thresholds=self.thresholds, size=self.size, dtype=self.dtype
        )

    def participant(self, site: SiteId, key: SigningKey, *, seed: int) -> Participant:
        """One site's state machine."""

        def claim() -> bool:
            first = site not in self.claimed
            self.claimed.add(site)
            return first

        return Participant(
            session=self.session,
            site=site,
            key=key,
            thresholds=self.thresholds,
            random_bytes=stream(seed),
            claim=claim,
        )

    def advertised(self, *, without: Iterable[str] = ()) -> None:
        """Every site but `without` advertises."""
        for site, party in self.parties.items():
            if site not in set(without):
                self.coordinator.take_advert(party.advertise())

    def shared(self, *, without: Iterable[str] = ()) -> None:
        """Every site that advertised, but `without`, shares."""
        adverts = self.coordinator.adverts()
        for advert in adverts:
            if advert.site not in set(without):
                party = self.parties[SiteId(advert.site)]
                self.coordinator.take_envelopes(party.share(adverts))

    def masked(self, vectors: Mapping[str, Ring], *, without: Iterable[str] = ()) -> None:
        """Every site that shared, but `without`, sends its vector."""
        for site in list(self.coordinator._boxes):
            if site not in set(without):
                boxes = self.coordinator.boxes_for(site)
                sent = self.parties[SiteId(site)].mask(boxes, vectors[site].copy())
                self.coordinator.take_masked(site, sent)

    def opened(self, *, unsigned: Iterable[str] = (), silent: Iterable[str] = ()) -> Ring:
        """The sum, with survivors that do not sign or do not unmask."""
        survivors = self.coordinator.close()
        for site in survivors:
            if site not in set(unsigned):
                signature = self.parties[SiteId(site)].sign_survivors(survivors)
                self.coordinator.take_signature(signature)
        signatures = () if self.mode == "semi-honest" else self.coordinator.signatures()
        for site in survivors:
            if site not in {*unsigned, *silent}:
                self.coordinator.take_unmasking(self.parties[SiteId(site)].unmask(signatures))
        return self.coordinator.sum()

    def vectors(self) -> dict[str, Ring]:
        """Random residues for every site."""
        generator = np.random.default_rng(self.seed + 1000)
        bits = 8 * np.dtype(self.dtype).itemsize
        return {
            site: generator.integers(0, 2**bits, size=self.size, dtype=self.dtype)
            for site in self.parties
        }


def total(vectors: Mapping[str, Ring], sites: Iterable[str]) -> Ring:
    """The plain sum modulo the ring."""
    chosen = np.stack([vectors[site] for site in sites])
    result: Ring = chosen.sum(axis=0, dtype=chosen.dtype)
    return result
