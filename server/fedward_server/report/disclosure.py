"""What a privacy officer is told about a run: what left, what it cost, what no epsilon covers.

Page and model card print these sentences; each is derived from the result, and a fact the result
does not hold is said to be missing (fields: NIST SP 800-226 and Ponomareva et al. 2023, 5.3).
"""

import math
from dataclasses import dataclass
from typing import Final

from fedward_server.report.figures import (
    bytes_text,
    describe,
    epsilon_text,
    run_cost,
    score_text,
    unit_text,
)
from fedward_server.report.result import RunFigures

NOT_RECORDED: Final = "not recorded in this result"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One line of the disclosure sheet."""

    name: str
    value: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """One use of patient data and whether the epsilon covers it."""

    name: str
    covered: str
    why: str


def what_left(run: RunFigures) -> tuple[str, ...]:
    """What crossed a hospital's border in this run."""
    study = run.study
    lines = [
        "No patient record left a hospital, and no exact count, mean or other statistic of its "
        "patients.",
        f"At most {study.rounds} model updates per hospital, one for each round it took part in, "
        "each with noise already added inside the hospital.",
    ]
    if run.evaluated:
        lines.append(
            "Once, after training: how many held-out patients of each class fall in each of a few "
            "ranges of the score, with noise added inside the hospital."
        )
    lines.append(
        "Protocol messages without patient values: names, digests, signatures, signs of life. A "
        "hospital that refuses says one word from a fixed list ('data': it has no table with the "
        "study's columns). A patient whose rows do not fit counts as absent, in silence."
    )
    lines.append(f"Together the hospitals sent {bytes_text(run.total_bytes_sent)}.")
    return tuple(lines)


def what_it_cost(run: RunFigures) -> tuple[str, ...]:
    """The price per patient in words, with the lines rules 3 asks for."""
    highest = run.highest_epsilon
    if highest is None:
        return ("No hospital charged a budget in this run.",)
    lines = [
        f"At most {run_cost(run, highest)} ({accountant(run)}). That is the whole study as it was "
        "declared, training and evaluation, also if it stopped early.",
        f"The relation is add or remove one {run.unit}: with {_all_of(run.unit)} added or "
        f"removed, every outcome of the run is at most {_factor(highest)} times as likely "
        "(e to the ε), apart from the probability δ.",
        "The price counts for every patient of the hospital, whether or not the patient is in the "
        "study.",
    ]
    ranked = sorted(run.epsilon.values(), reverse=True)
    if len(ranked) > 1:
        double = epsilon_text(
            sum(ranked[:2]), delta=2 * run.delta, per="for a person known to two sites"
        )
        lines.append(
            "A patient treated at two of these hospitals is covered only up to two contributions, "
            f"which add up: at most {double}; with a third hospital a third is added."
        )
    return tuple(lines)


def _all_of(unit: str) -> str:
    return "any one record" if unit == "record" else f"all records of any one {unit}"


def what_is_not_covered() -> tuple[str, ...]:
    """What no epsilon on the page speaks about."""
    return (
        "What the model teaches about a disease in general. The guarantee limits what depends on "
        "one patient being in the data, not what is true of many patients.",
        "That someone is a patient of a hospital at all, if it is known from elsewhere.",
        "Public constants that people chose: the ranges of the columns, the planned number of "
        "patients per hospital, the settings of the study. Settings that were tuned on the same "
        "patients before this study are not charged here.",
        "Timing and size of encrypted messages, as an observer of the network sees them.",
        "Earlier and later studies on the same patients. Each hospital's ledger adds them up; "
        "these figures are of this study alone.",
        "Every figure marked exact, and the models 'each site alone' and 'pooled without privacy'. "
        "They exist only because this is a sandbox: one machine holds all files, and its parent "
        "process scores models on its own copy of the held-out rows. In a federation of hospitals "
        "nobody can compute them, and nobody should publish them for real patients.",
    )


def data_accesses(run: RunFigures) -> tuple[Access, ...]:
    """Every way patient data were used, and whether the printed epsilon covers it."""
    evaluation = (
        "noised bins, charged to the same budget" if run.evaluated else "no noised bins arrived"
    )
    return (
        Access(name="training", covered="yes", why="every step is charged before it runs"),
        Access(name="evaluation by the sites", covered="yes", why=evaluation),
        Access(
            name="normalisation, filling of gaps, class and site weights",
            covered="no access",
            why="public constants from the signed study",
        ),
        Access(
            name="early stopping",
            covered="no access",
            why="the number of steps is fixed beforehand",
        ),
        Access(
            name="tuning of the settings",
            covered="no",
            why="done by people before the study, outside this run",
        ),
        Access(
            name="exact figures, curves and baselines on this page",
            covered="no",
            why="sandbox only, from the parent's own copy",
        ),
    )


def disclosure_sheet(run: RunFigures) -> tuple[Fact, ...]:
    """The differential-privacy parameters of the run; what the result lacks is named as missing."""
    rows = (*_mechanism(run), *_conditions(run))
    return tuple(Fact(name=name, value=value) for name, value in rows)


def accountant(run: RunFigures) -> str:
    """The accountant behind `run.epsilon`, in words."""
    if run.epsilon_is == "admission":
        return "admission figure of the ledger: Rényi filter"
    return "privacy loss distribution" if run.epsilon_is == "pld" else run.epsilon_is


def facts_of_study(run: RunFigures) -> tuple[Fact, ...]:
    """What was trained, and how."""
    study = run.study
    return (
        Fact(name="Study", value=study.id),
        Fact(name="Digest", value=study.digest),
        Fact(name="Task", value=describe(study.task)),
        Fact(name="Model", value=describe(study.model)),
        Fact(name="Aggregation", value=describe(study.aggregation)),
        Fact(
            name="Rounds",
            value=f"{run.rounds.committed} committed, {run.rounds.abandoned} abandoned, "
            f"{study.rounds} declared",
        ),
    )


def _factor(epsilon: float) -> str:
    if epsilon > math.log(1e6):
        return "more than a million"
    return f"{math.ceil(math.exp(epsilon) * 10) / 10:g}"


def _placement(placement: str) -> str:
    if placement == "local":
        return (
            "local: each hospital adds the full noise itself. The guarantee holds against the "
            "coordinator and all other hospitals together; only the hospital's own machine is "
            "trusted"
        )
    if placement == "distributed":
        return (
            "distributed: each hospital's guard adds a share and masks the result, so that the "
            "coordinator sees only sums over hospitals, which carry at least the whole noise. The "
            "guarantee holds against the coordinator together with as many hospitals as the study "
            "names; if all others collude, only a hospital's own share protects"
        )
    return placement


def _accountant_line(run: RunFigures) -> str:
    version = run.environment.get("dp_accounting", "(version not recorded)")
    values = sorted(run.epsilon.values())
    if not values:
        return f"dp-accounting {version}"
    lowest = run_cost(run, values[0])
    return f"dp-accounting {version}, {accountant(run)}; the site that paid least: {lowest}"


def _software(run: RunFigures) -> str:
    names = ("fedward", "torch", "opacus", "flwr", "python")
    known = [f"{name} {run.environment[name]}" for name in names if name in run.environment]
    return f"{', '.join(known) or NOT_RECORDED}; hash of the installed software: {NOT_RECORDED}"


def _mechanism(run: RunFigures) -> list[tuple[str, str]]:
    study = run.study
    records = study.max_records_per_patient
    return [
        ("Definition", f"(ε, δ)-differential privacy, add or remove one {run.unit}"),
        ("Highest cost", f"{run_cost(run, run.highest_epsilon)} ({accountant(run)})"),
        ("Same by the tighter PLD", run_cost(run, max(run.epsilon_pld.values(), default=None))),
        ("Unit", unit_text(run.unit)),
        (
            "Contribution bound",
            f"one mean gradient per {run.unit} and step, clipped to L2 norm "
            f"{study.clip_norm:g}; records per {run.unit}: {records or NOT_RECORDED}",
        ),
        ("Placement of the noise", _placement(study.placement)),
        (
            "Mechanism",
            "DP-SGD: Gaussian noise on the sum of clipped patient gradients; patients enter a step "
            "by Poisson sampling, in the run as in the accounting",
        ),
        ("Noise multiplier sigma", f"{study.noise_multiplier:g}"),
        ("Clip norm C", f"{study.clip_norm:g}"),
        ("Sampling probability q", f"{study.sampling_probability:g}"),
        (
            "Steps T",
            f"{study.steps} = {study.rounds} rounds x {study.local_steps} local steps",
        ),
    ]


def _conditions(run: RunFigures) -> list[tuple[str, str]]:
    return [
        ("Accountant", _accountant_line(run)),
        (
            "Composition",
            "training and evaluation of this study; each hospital's ledger adds its other studies",
        ),
        (
            "Random numbers",
            "AES-256 in counter mode under fresh keys of the operating system; no seed exists"
            if run.seed is None
            else f"seed {run.seed}: a repeatable run protects nobody",
        ),
        (
            "Floating point",
            "noise in 64-bit floats, published as 32-bit; no discrete mechanism, so attacks on the "
            "floating-point grid (Mironov 2012) are not excluded by proof",
        ),
        ("Pre-training", NOT_RECORDED),
        (
            "Utility",
            f"pooled AUC {score_text(run.auc.federated)}, "
            f"accuracy {score_text(run.accuracy.federated)} (exact); "
            "error by subgroup: not computed",
        ),
        ("Empirical audit", "none was run"),
        ("Software", _software(run)),
    ]
