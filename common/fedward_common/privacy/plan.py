"""What a privacy budget buys: noise, sampling and steps side by side, before a study is written.

Every option is calibrated by `accounting.calibrate_noise_multiplier`, releases included, so an
option that is copied into a study file gets exactly the noise shown here. Inputs are public
planning constants only: the sites' rounded patient numbers, never exact counts (rules 6).

Units: noise is measured in clip norms C, per coordinate of the model. With noise added at each site
(`placement = "local"`), n sites, N patients in all and noise multiplier sigma:

* `relative_noise` = sigma / (q N): the noise of a step's mean if it were drawn once for all sites;
* `site_noise` = sigma / (q N_i): what one site's own mean carries;
* `federation_noise` = sqrt(n) sigma / (q N): what the mean over the sites, weighted by their
  patients, carries, because every site draws its own noise;
* `signal_to_noise` = sqrt(T) / federation_noise: T steps whose patients all pull one coordinate by
  C add up to T, their noise to sqrt(T) federation_noise. So it is a ceiling for comparing plans,
  not a forecast of accuracy: it knows nothing of learning rate, model or disagreement between
  patients, and leaves out the sampling error of small q.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from dp_accounting import ComposedDpEvent

from fedward_common.errors import ConfigError
from fedward_common.privacy.accounting import (
    EpsilonKind,
    calibrate_noise_multiplier,
    epsilon_admission,
    epsilon_as,
    epsilon_pld,
)
from fedward_common.privacy.mechanism import (
    MAX_NOISE,
    MIN_SAMPLING,
    dp_sgd_event,
    release_event,
)
from fedward_common.study.registry import ReleaseSpec

MAX_OPTIONS: Final = 200
MAX_STEPS: Final = 1_000_000
MAX_PATIENTS: Final = 10**9
LARGE_POPULATION: Final = 10_000
"""From this many patients on, delta is at most 1e-5 (rules 9)."""

Progress = Callable[[int, int], None]
"""(options done, options in all), called once before the first and after each."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Schedule:
    """`rounds` exchanges of `local_steps` steps each; privacy depends on their product only."""

    rounds: int
    local_steps: int

    def __post_init__(self) -> None:
        if not (self.rounds >= 1 and self.local_steps >= 1 and self.steps <= MAX_STEPS):
            raise ConfigError(
                f"steps: expected at least one round of one step and at most {MAX_STEPS} in all, "
                f"found {self.rounds} rounds of {self.local_steps}"
            )

    @classmethod
    def of_steps(cls, steps: int, *, local_steps: int = 5) -> Self:
        """`steps` steps in all, in rounds of the largest even share of at most `local_steps`.

        Raises:
            ConfigError: a number out of range.
        """
        if not (1 <= steps <= MAX_STEPS and local_steps >= 1):
            raise ConfigError(
                f"steps: expected 1 to {MAX_STEPS} in rounds of at least 1, found {steps} in "
                f"rounds of {local_steps}"
            )
        share = max(s for s in range(1, min(local_steps, steps) + 1) if steps % s == 0)
        return cls(rounds=steps // share, local_steps=share)

    @property
    def steps(self) -> int:
        """T_max: what is reserved and accounted (rules 4)."""
        return self.rounds * self.local_steps


DEFAULT_SCHEDULES: Final = tuple(Schedule.of_steps(steps) for steps in (20, 40, 80))
DEFAULT_SAMPLING: Final = (0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRequest:
    """What is asked: who takes part, what it may cost a patient, and which plans to compare.

    `patients` are the training patients of each site, as the parties rounded them. `epsilon` bounds
    training and all `releases` together, per patient of one site, counted as `epsilon_is` says.

    Raises:
        ConfigError: a number out of range; delta above what rules 9 allow for these patients.
    """

    patients: tuple[int, ...]
    epsilon: float
    delta: float
    epsilon_is: EpsilonKind = "admission"
    schedules: tuple[Schedule, ...] = DEFAULT_SCHEDULES
    sampling_probabilities: tuple[float, ...] = DEFAULT_SAMPLING
    releases: tuple[ReleaseSpec, ...] = ()

    def __post_init__(self) -> None:
        if not self.patients or not all(1 <= p <= MAX_PATIENTS for p in self.patients):
            raise ConfigError(
                f"patients: expected 1 to {MAX_PATIENTS} for each of one or more sites, found "
                f"{list(self.patients)}"
            )
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ConfigError(f"epsilon: expected a number above 0, found {self.epsilon}")
        limit = delta_limit(self.public_patients)
        if not self.delta > 0 or (self.delta > limit and not math.isclose(self.delta, limit)):
            raise ConfigError(
                f"delta: expected above 0 and at most {limit:.3g} for {self.public_patients} "
                f"patients, found {self.delta}"
            )
        for probability in self.sampling_probabilities:
            if not MIN_SAMPLING <= probability <= 1:
                raise ConfigError(
                    f"sampling probability: expected above 0 and at most 1, found {probability}"
                )
        options = len(self.schedules) * len(self.sampling_probabilities)
        if not 1 <= options <= MAX_OPTIONS:
            raise ConfigError(
                f"alternatives: expected 1 to {MAX_OPTIONS} combinations of steps and sampling "
                f"probabilities, found {options}"
            )

    @property
    def public_patients(self) -> int:
        """N: the sum of the sites' numbers."""
        return sum(self.patients)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOption:
    """One plan with its price; the two epsilons are for training and all releases, at `delta`."""

    patients: tuple[int, ...]
    sampling_probability: float
    schedule: Schedule
    noise_multiplier: float
    delta: float
    epsilon_admission: float
    epsilon_pld: float

    @property
    def steps(self) -> int:
        """T_max of the plan."""
        return self.schedule.steps

    @property
    def site_batches(self) -> tuple[float, ...]:
        """How many patients each site expects to draw per step, q N_i."""
        return tuple(self.sampling_probability * patients for patients in self.patients)

    @property
    def batch(self) -> float:
        """How many patients are expected per step in all, q N."""
        return self.sampling_probability * sum(self.patients)

    @property
    def relative_noise(self) -> float:
        """sigma / (q N)."""
        return self.noise_multiplier / self.batch

    @property
    def site_noise(self) -> tuple[float, ...]:
        """sigma / (q N_i) of each site."""
        return tuple(self.noise_multiplier / batch for batch in self.site_batches)

    @property
    def federation_noise(self) -> float:
        """sqrt(n) sigma / (q N): the noise of the weighted mean when each site adds its own."""
        return math.sqrt(len(self.patients)) * self.relative_noise

    @property
    def signal_to_noise(self) -> float:
        """sqrt(T) / federation_noise; the module's docstring says what it does not know."""
        return math.sqrt(self.steps) / self.federation_noise


def delta_limit(patients: int) -> float:
    """The largest delta for a study of `patients` patients in all (rules 9)."""
    return 1 / (10 * patients) if patients < LARGE_POPULATION else 1e-5


def plan_option(
    request: PlanRequest,
    *,
    schedule: Schedule,
    sampling_probability: float,
    noise_multiplier: float | None = None,
) -> PlanOption:
    """The plan with this schedule and sampling, at the smallest noise within the request's budget.

    With `noise_multiplier` that noise is priced as it is, also where it exceeds the budget.

    Raises:
        ConfigError: no noise is enough, or a parameter the accountants do not take.
    """
    if noise_multiplier is None:
        noise_multiplier = calibrate_noise_multiplier(
            epsilon=request.epsilon,
            epsilon_is=request.epsilon_is,
            delta=request.delta,
            sampling_probability=sampling_probability,
            steps=schedule.steps,
            releases=request.releases,
        )
    training = dp_sgd_event(
        noise_multiplier=noise_multiplier,
        sampling_probability=sampling_probability,
        steps=schedule.steps,
    )
    event = ComposedDpEvent([training, *(release_event(r) for r in request.releases)])
    return PlanOption(
        patients=request.patients,
        sampling_probability=sampling_probability,
        schedule=schedule,
        noise_multiplier=noise_multiplier,
        delta=request.delta,
        epsilon_admission=epsilon_admission([event], delta=request.delta),
        epsilon_pld=epsilon_pld(event, delta=request.delta),
    )


def alternatives(
    request: PlanRequest,
    *,
    known: Sequence[PlanOption] = (),
    progress: Progress | None = None,
) -> tuple[PlanOption, ...]:
    """Every schedule with every sampling probability of `request`, best signal-to-noise first.

    Of plans equal to three digits the one with fewer steps, then fewer rounds, comes first. `known`
    plans stand in for the same schedule and sampling and are listed in any case. A combination that
    no noise brings into the budget is left out.

    Raises:
        ConfigError: not one combination fits the budget.
    """
    _check_releases(request)
    found = {_place(option): option for option in known}
    open_places = {
        (schedule, probability): None
        for schedule in request.schedules
        for probability in request.sampling_probabilities
        if (schedule, probability) not in found
    }
    tell = progress or (lambda _done, _total: None)
    tell(0, len(open_places))
    for done, (schedule, probability) in enumerate(open_places, start=1):
        option = _option_or_none(request, schedule=schedule, sampling_probability=probability)
        if option is not None:
            found[_place(option)] = option
        tell(done, len(open_places))
    if not found:
        raise ConfigError(
            f"epsilon: expected enough for some plan with a noise multiplier of at most "
            f"{MAX_NOISE:g}, found {request.epsilon} at delta {request.delta:g}. Raise epsilon or "
            "take fewer steps"
        )
    return _ranked(found.values())


def _ranked(options: Iterable[PlanOption]) -> tuple[PlanOption, ...]:
    # Noise rounded up to its grid must not decide between plans that are as good as equal.
    return tuple(
        sorted(
            options,
            key=lambda o: (
                -float(f"{o.signal_to_noise:.3g}"),
                o.steps,
                o.schedule,
                o.sampling_probability,
                o.noise_multiplier,
            ),
        )
    )


def _place(option: PlanOption) -> tuple[Schedule, float]:
    return option.schedule, option.sampling_probability


def _option_or_none(
    request: PlanRequest, *, schedule: Schedule, sampling_probability: float
) -> PlanOption | None:
    # The request is checked, so all that calibration can still say is that no noise is enough.
    try:
        return plan_option(request, schedule=schedule, sampling_probability=sampling_probability)
    except ConfigError:
        return None


def _check_releases(request: PlanRequest) -> None:
    """Refuses releases that nobody can account for or that leave nothing for training."""
    if not request.releases:
        return
    event = ComposedDpEvent([release_event(release) for release in request.releases])
    alone = epsilon_as(request.epsilon_is, event, delta=request.delta)
    if not alone < request.epsilon:
        raise ConfigError(
            f"epsilon: expected more than the releases alone cost ({alone:.3f} at delta "
            f"{request.delta:g}, {request.epsilon_is}), found {request.epsilon}. Raise epsilon or "
            "the releases' noise_multiplier"
        )
