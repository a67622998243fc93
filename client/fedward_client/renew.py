"""When a site's certificate is renewed, and how long it waits after a failure. No I/O."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from fedward_common.trust.certificates import PeerCertificate

FIRST_PAUSE: Final = timedelta(minutes=1)
LONGEST_PAUSE: Final = timedelta(hours=1)


def renewal_moment(own: PeerCertificate) -> datetime:
    """When two thirds of the certificate's life are over: a month is left of 90 days."""
    return own.not_before + 2 * (own.not_after - own.not_before) / 3


def renewal_due(own: PeerCertificate, now: datetime) -> bool:
    """Whether the certificate should be replaced by now."""
    return now >= renewal_moment(own)


@dataclass(slots=True)
class Backoff:
    """A minute after a first failure, twice as long after each further one, an hour at most."""

    failures: int = 0

    def failed(self) -> timedelta:
        """Counts a failure and says how long to wait."""
        pause = FIRST_PAUSE * (1 << min(self.failures, 16))
        self.failures += 1
        return min(pause, LONGEST_PAUSE)

    def worked(self) -> None:
        """Forgets the failures."""
        self.failures = 0
