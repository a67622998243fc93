"""`fedward-server plan`: what a privacy budget buys, as tables for people or JSON for machines.

Reads only public planning constants: a study file, or patient numbers given by hand. A study file
is read in full, as for signing; keys, which a file never holds, are stand-ins here.
"""

import math
import re
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError
from fedward_common.privacy.plan import (
    DEFAULT_SAMPLING,
    DEFAULT_SCHEDULES,
    PlanOption,
    PlanRequest,
    Schedule,
    alternatives,
    plan_option,
)
from fedward_common.study.evaluation import BinnedScores
from fedward_common.study.files import SiteKeys, parse_study, read_toml
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_server.report.figures import delta_text, epsilon_number

FORMAT: Final = "fedward-plan/1"
BAR_AFTER_SECONDS: Final = 2.0
EVALUATION_BINS: Final = 4
"""The price of an evaluation does not depend on its bins, so any number does for a plan by hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A request with its answers: `own` is the study's plan where one was read, also in `options`.

    `sites` are names for the numbers in `request.patients`, in the same order.
    """

    request: PlanRequest
    options: tuple[PlanOption, ...]
    sites: tuple[str, ...]
    study_id: str | None = None
    own: PlanOption | None = None


Report = Callable[[int, int], None]
"""(plans done, plans in all), as `alternatives` calls it."""


class PlanProgress:
    """A bar on a terminal once the work has lasted two seconds; nothing anywhere else.

    A context manager; give `update` to `alternatives`.
    """

    def __init__(
        self, console: Console | None = None, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console(stderr=True)
        self._now = now
        self._since = now()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(self, done: int, total: int) -> None:
        """Takes note that `done` of `total` plans are calibrated."""
        if self._bar is None:
            late = self._now() - self._since >= BAR_AFTER_SECONDS
            if not (late and self._console.is_terminal and done < total):
                return
            self._bar = Progress(
                TextColumn("calibrating plans"),
                BarColumn(),
                MofNCompleteColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.add_task("plans", total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)


def plan_from_study(
    study: Path | str,
    *,
    steps: Sequence[str] = (),
    sampling: Sequence[float] = (),
    progress: Report | None = None,
) -> Plan:
    """The study's own plan among its alternatives.

    `study` is a study.toml, or its text: patients, epsilon, delta, releases and schedule are read
    from it, and its noise is what it says or what its signer would get. Besides its own schedule
    those of `steps` are tried (see `parse_schedule`; left out: half and twice the rounds), and
    besides its own sampling probability those of `sampling` (left out: 0.1, 0.25, 0.5 and 1).

    Raises:
        ConfigError: the file is wrong (one line per problem), or no plan fits the budget.
    """
    spec = _read_study(study)
    dp = spec.dp
    if not isinstance(dp, DpSgd):
        raise ConfigError(
            f"dp.kind: expected a study that trains (dp-sgd), found {dp.kind!r}. The noise of a "
            "study of statistics follows from its dp.epsilon alone"
        )
    schedule = Schedule(rounds=spec.rounds, local_steps=spec.local_steps)
    others = [parse_schedule(text) for text in steps] or [
        Schedule(rounds=rounds, local_steps=spec.local_steps)
        for rounds in (max(1, spec.rounds // 2), 2 * spec.rounds)
    ]
    request = PlanRequest(
        patients=tuple(site.patients for site in spec.sites),
        epsilon=dp.epsilon,
        epsilon_is=dp.epsilon_is,
        delta=dp.delta,
        schedules=tuple(dict.fromkeys((schedule, *others))),
        sampling_probabilities=tuple(
            sorted({*(sampling or DEFAULT_SAMPLING), dp.sampling_probability})
        ),
        releases=spec.releases,
    )
    own = plan_option(
        request,
        schedule=schedule,
        sampling_probability=dp.sampling_probability,
        noise_multiplier=dp.noise_multiplier,
    )
    return Plan(
        request=request,
        options=alternatives(request, known=(own,), progress=progress),
        sites=tuple(site.id for site in spec.sites),
        study_id=spec.id,
        own=own,
    )


def plan_from_numbers(
    patients: str,
    *,
    epsilon: float,
    delta: float,
    steps: Sequence[str] = (),
    sampling: Sequence[float] = (),
    evaluation_noise: float | None = None,
    progress: Report | None = None,
) -> Plan:
    """The alternatives for `patients` such as `200,170,30,85`, one number per site.

    `steps` are schedules (see `parse_schedule`; left out: 20, 40 and 80 steps), `sampling` the
    sampling probabilities (left out: 0.1, 0.25, 0.5 and 1). `evaluation_noise` puts one noised
    evaluation into the budget.

    Raises:
        ConfigError: a number that is none or out of range, or no plan fits the budget.
    """
    numbers = _numbers(patients)
    schedules = dict.fromkeys(parse_schedule(text) for text in steps)
    request = PlanRequest(
        patients=numbers,
        epsilon=epsilon,
        delta=delta,
        schedules=tuple(schedules) or DEFAULT_SCHEDULES,
        sampling_probabilities=tuple(sorted(set(sampling))) or DEFAULT_SAMPLING,
        releases=_evaluation(evaluation_noise),
    )
    return Plan(
        request=request,
        options=alternatives(request, progress=progress),
        sites=tuple(f"site {number}" for number in range(1, len(numbers) + 1)),
    )


def plan_from_arguments(
    study: Path | None,
    *,
    patients: str | None,
    epsilon: float | None,
    delta: float | None,
    steps: Sequence[str] = (),
    sampling: Sequence[float] = (),
    evaluation_noise: float | None = None,
) -> Plan:
    """The plan that a command line asks for, with a progress bar on stderr where it takes long.

    Raises:
        ConfigError: a study file together with numbers that it holds, neither, or as
            `plan_from_study` and `plan_from_numbers`.
    """
    by_hand = {
        "--patients": patients,
        "--epsilon": epsilon,
        "--delta": delta,
        "--evaluation-noise": evaluation_noise,
    }
    given = [name for name, value in by_hand.items() if value is not None]
    with PlanProgress() as bar:
        if study is not None:
            if given:
                raise ConfigError(
                    f"plan: expected a study file or numbers, found both; leave out "
                    f"{', '.join(given)} (the study file says them)"
                )
            return plan_from_study(study, steps=steps, sampling=sampling, progress=bar.update)
        if patients is None or epsilon is None or delta is None:
            raise ConfigError(
                "plan: expected a study file, or --patients, --epsilon and --delta, found "
                f"{', '.join(given) or 'none of them'}"
            )
        return plan_from_numbers(
            patients,
            epsilon=epsilon,
            delta=delta,
            steps=steps,
            sampling=sampling,
            evaluation_noise=evaluation_noise,
            progress=bar.update,
        )


def parse_schedule(text: str) -> Schedule:
    """`8x5` as 8 rounds of 5 steps; `40` as 40 steps in rounds of at most 5.

    Raises:
        ConfigError: neither, or a number out of range.
    """
    found = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", text.strip())
    if found is None:
        raise ConfigError(
            f"--steps: expected a number of steps, such as 40, or rounds x steps, such as 8x5, "
            f"found {text!r}"
        )
    first, second = found.groups()
    if second is None:
        return Schedule.of_steps(int(first))
    return Schedule(rounds=int(first), local_steps=int(second))


def plan_json(plan: Plan) -> dict[str, Any]:
    """`plan` as one JSON object; `options` are best first, the study's own has `own` true."""
    request = plan.request
    return {
        "format": FORMAT,
        "study": plan.study_id,
        "unit": "patient of one site",
        "epsilon": request.epsilon,
        "epsilon_is": request.epsilon_is,
        "delta": request.delta,
        "sites": [
            {"id": name, "patients": patients}
            for name, patients in zip(plan.sites, request.patients, strict=True)
        ],
        "patients": request.public_patients,
        "releases": [release.model_dump(mode="json") for release in request.releases],
        "options": [{"own": o == plan.own, **_option_json(o)} for o in plan.options],
    }


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Prints the alternatives, best first, and what each site draws per step, with both epsilons.

    Fits a terminal of 80 columns. Epsilons are rounded up.
    """
    console = console or Console()
    request = plan.request
    title = f"study {plan.study_id}" if plan.study_id else f"{len(plan.sites)} sites"
    releases = len(request.releases)
    cover = "training only" if not releases else f"training and {releases} release(s)"
    console.print()
    console.print(Text(title, style="bold"))
    console.print(
        Text(
            f"{request.public_patients} patients; epsilon {request.epsilon:g} ({request.epsilon_is}"
            f") at delta {delta_text(request.delta)}, {cover}, per patient of one site"
        )
    )
    console.print()
    console.print(_options_table(plan))
    for line in _notes(plan):
        console.print(Text(line))
    console.print()
    console.print(_sites_table(plan, plan.own or plan.options[0]))


def _read_study(study: Path | str) -> StudySpec:
    if isinstance(study, Path):
        document = read_toml(study)
        source, text = str(study), study.read_text(encoding="utf-8")
    else:
        source, text = "study", study
        try:
            document = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError):
            document = {}  # parse_study says what is wrong
    return parse_study(
        text,
        source=source,
        keys=_stand_in_keys(document),
        lead_key_sha256=sha256_hex(b"lead"),
    )


def _stand_in_keys(document: dict[str, Any]) -> dict[str, SiteKeys]:
    sites = document.get("sites")
    entries = sites if isinstance(sites, list) else []
    names = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    return {
        name: SiteKeys(
            key_sha256=sha256_hex(f"{name}/key".encode()),
            node_key_sha256=sha256_hex(f"{name}/node".encode()),
        )
        for name in names
        if isinstance(name, str)
    }


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    try:
        return tuple(int(part) for part in parts)
    except ValueError as error:
        raise ConfigError(
            f"--patients: expected whole numbers with commas between, such as 200,170,30,85, "
            f"found {text!r}"
        ) from error


def _evaluation(noise: float | None) -> tuple[BinnedScores, ...]:
    if noise is None:
        return ()
    if not (math.isfinite(noise) and noise > 0):
        raise ConfigError(f"--evaluation-noise: expected a number above 0, found {noise}")
    return (BinnedScores(bins=EVALUATION_BINS, noise_multiplier=noise),)


def _option_json(option: PlanOption) -> dict[str, Any]:
    return {
        "noise_multiplier": option.noise_multiplier,
        "sampling_probability": option.sampling_probability,
        "steps": option.steps,
        "rounds": option.schedule.rounds,
        "local_steps": option.schedule.local_steps,
        "patients_per_step": option.batch,
        "patients_per_step_per_site": list(option.site_batches),
        "epsilon_admission": option.epsilon_admission,
        "epsilon_pld": option.epsilon_pld,
        "delta": option.delta,
        "relative_noise": option.relative_noise,
        "relative_noise_per_site": list(option.site_noise),
        "federation_noise": option.federation_noise,
        "signal_to_noise": option.signal_to_noise,
    }


def _options_table(plan: Plan) -> Table:
    table = _table("Alternatives, best signal-to-noise first")
    table.add_column("", no_wrap=True)
    for name in (
        "rounds\nx steps",
        "q",
        "patients\nper step",
        "noise\nmult.",
        "epsilon\nadmission",
        "epsilon\nPLD",
        "sigma\n/ (qN)",
        "signal\n/noise",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for option in plan.options:
        own = option == plan.own
        table.add_row(
            "study" if own else "",
            f"{option.schedule.rounds} x {option.schedule.local_steps}",
            f"{option.sampling_probability:g}",
            f"{option.batch:.4g}",
            f"{option.noise_multiplier:.4f}",
            epsilon_number(option.epsilon_admission),
            epsilon_number(option.epsilon_pld),
            f"{option.relative_noise:.4f}",
            f"{option.signal_to_noise:.1f}",
            style="bold" if own else "",
        )
    return table


def _sites_table(plan: Plan, option: PlanOption) -> Table:
    which = "Each site in the study's plan" if plan.own else "Each site in the first plan"
    table = _table(which)
    table.add_column("site", overflow="fold")
    for name in ("patients", "expected\nper step", "noise of its own\nmean (norms)"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = zip(plan.sites, option.patients, option.site_batches, option.site_noise, strict=True)
    for name, patients, batch, noise in rows:
        table.add_row(Text(name), str(patients), f"{batch:.4g}", f"{noise:.4f}")
    return table


def _notes(plan: Plan) -> list[str]:
    request = plan.request
    lines = [
        f"Both epsilons hold at delta {delta_text(request.delta)}: admission is what a hospital's "
        "ledger reserves and adds up over studies, PLD the tighter figure of this study alone. A "
        "patient of several of these hospitals pays at each.",
        "Noise in clip norms. signal/noise is sqrt(steps) q N / (sqrt(sites) sigma), as each site "
        "adds its own noise: a ceiling for comparing plans, not a forecast of accuracy.",
    ]
    if not request.releases:
        lines.append(
            "No evaluation is in this budget: one with noised counts costs extra "
            "(--evaluation-noise)."
        )
    wanted = {(s, q) for s in request.schedules for q in request.sampling_probabilities}
    left_out = len(wanted) - len(plan.options)
    if left_out > 0:
        lines.append(f"{left_out} combination(s) left out: no noise brings them into the budget.")
    return lines


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
