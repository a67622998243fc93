"""Three numbers that are never one: the Shamir threshold, the dropouts, the noise that counts.

Source: rules of the trust model, after Bonawitz et al. 2017, section 6 (malicious server).
"""

import math
from dataclasses import dataclass
from typing import Literal, Self

from fedward_common.secagg.refusals import Reason, SecAggRefused

Mode = Literal["malicious", "semi-honest"]
FEWEST: int = 3
"""Sites in a sum that is released at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """What a study of `sites` hospitals needs and bears.

    `threshold` (T) shares rebuild a secret and so many signatures are wanted on one survivor list;
    `dropouts` (d) sites may be lost between masking and unmasking; `discounted` (c) sites' noise
    does not count, because every site knows its own.
    """

    sites: int
    threshold: int
    dropouts: int
    discounted: int
    mode: Mode

    @classmethod
    def of(cls, sites: int, *, malicious_sites: int = 1, mode: Mode = "malicious") -> Self:
        """The thresholds of a study.

        `malicious`: T = floor(2n/3) + 1, so that no coordinator can have two survivor lists
        signed. `semi-honest`: T = floor(n/2) + 1; a study must say that word itself.

        Raises:
            SecAggRefused: fewer than three sites, or no noise would be left to count.
        """
        if sites < FEWEST:
            raise SecAggRefused(
                Reason.TOO_FEW_SITES, f"expected at least {FEWEST} sites, found {sites}"
            )
        threshold = (2 * sites) // 3 + 1 if mode == "malicious" else sites // 2 + 1
        threshold = min(max(threshold, 2), sites)
        found = cls(
            sites=sites,
            threshold=threshold,
            dropouts=sites - max(threshold, FEWEST),
            discounted=max(1, malicious_sites),
            mode=mode,
        )
        if found.noisy_sites < 1:
            raise SecAggRefused(
                Reason.TOO_FEW_SITES,
                f"expected noise of at least one site to count, found {sites} sites with "
                f"{found.dropouts} dropouts and {found.discounted} discounted",
            )
        return found

    @property
    def noisy_sites(self) -> int:
        """n - d - c: the sites whose noise is there whatever happens."""
        return self.sites - self.dropouts - self.discounted

    @property
    def fewest_survivors(self) -> int:
        """max(3, n - d): below it the *sites* refuse to unmask."""
        return max(FEWEST, self.sites - self.dropouts)

    @property
    def site_noise_factor(self) -> float:
        """What each site multiplies sigma C by, so that the total has at least sigma C."""
        return 1.0 / math.sqrt(self.noisy_sites)

    @property
    def excess_noise(self) -> float:
        """The total's noise over sigma C when nobody drops out."""
        return math.sqrt(self.sites / self.noisy_sites)
