"""How much left, per round of a study and per UTC day, against the hospital's limits. No I/O."""

from collections import Counter
from dataclasses import dataclass, field

from fedward_client.ports import Clock
from fedward_client.settings import PolicyRules
from fedward_common.errors import PolicyRefused


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Counts bytes as they leave; a retry of the transport counts again, because it leaves again.

    The caller writes down each object before `add`, and fills the counts from what it wrote when it
    starts again: a restart forgets nothing.
    """

    rules: PolicyRules
    clock: Clock
    of_round: Counter[tuple[str, int]] = field(default_factory=Counter)
    of_day: Counter[str] = field(default_factory=Counter)

    def check(self, study: str, round_number: int, size_bytes: int) -> None:
        """Returns when `size_bytes` more may leave for this round today.

        Raises:
            PolicyRefused: a limit of site.toml would be passed.
        """
        rules = self.rules
        for key, name, used, limit in (
            (
                "max_bytes_per_round",
                f"round {round_number}",
                self.of_round[study, round_number],
                rules.max_bytes_per_round,
            ),
            (
                "max_bytes_per_day",
                "this day (UTC)",
                self.of_day[self._today()],
                rules.max_bytes_per_day,
            ),
        ):
            if used + size_bytes > limit:
                raise PolicyRefused(
                    f"Site policy keeps a message back: with it {used + size_bytes} bytes would "
                    f"leave in {name}, the limit ({key}) is {limit}"
                )

    def add(self, size_bytes: int, *, study: str = "", round_number: int = 0) -> None:
        """Counts bytes that are about to leave."""
        self.of_day[self._today()] += size_bytes
        if study:
            self.of_round[study, round_number] += size_bytes

    def _today(self) -> str:
        return self.clock().isoformat()[:10]
