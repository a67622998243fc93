"""The state of a run as its events tell it, and each event in words: no output, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import declared
from fedward_server.report.figures import bytes_text, epsilon_text, unit_text

_MAX_TEXT: Final = 240
_PHASES: Final = {
    "evaluate": ("evaluation", "evaluating"),
    "statistics": ("statistics", "counting"),
}
"""Kind of instruction -> what the run is doing, what a site is doing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What stands above a run: the study and the most it may cost, at which delta."""

    study: str
    digest: str
    sites: tuple[str, ...]
    rounds: int
    delta: float
    epsilon: float
    epsilon_is: str = "admission"
    unit: str = "patient"

    @classmethod
    def of(cls, study: StudySpec) -> Self:
        """The header of a study. Raises ConfigError for a plan that declares no budget."""
        dp = declared(study)
        return cls(
            study=study.id,
            digest=study.digest,
            sites=tuple(site.id for site in study.sites),
            rounds=study.rounds,
            delta=dp.delta,
            epsilon=dp.epsilon,
            epsilon_is=dp.epsilon_is,
            unit=dp.unit,
        )

    @property
    def lines(self) -> tuple[str, str]:
        """The study, and its budget with delta and unit."""
        cost = epsilon_text(self.epsilon, delta=self.delta, per=unit_text(self.unit))
        return (
            f"study {clean(self.study)}  digest {clean(self.digest[:12])}",
            f"at most {cost} ({clean(self.epsilon_is)})",
        )


@dataclass(kw_only=True, slots=True)
class SiteLine:
    """What the view knows of one site; `epsilon` and `bytes_sent` are None until someone tells."""

    state: str = "starting"
    detail: str = ""
    epsilon: float | None = None
    bytes_sent: int | None = None


@dataclass(kw_only=True, slots=True)
class Board:
    """Who is where in a run.

    Events are those of `study_run`, and these of the sandbox's parent: `site.starting`,
    `site.online`, `phase` (`name`). Any event with a `site` may carry `epsilon` and `bytes_sent`.
    """

    sites: dict[str, SiteLine]
    rounds: int
    current: int = 0
    committed: int = 0
    abandoned: int = 0
    phase: str = "starting"

    def apply(self, action: str, fields: Mapping[str, Any]) -> None:
        """Takes one event in; an action it does not know changes nothing but the site's figures."""
        site = self.sites.get(str(fields.get("site", "")))
        if site is not None:
            site.epsilon = _number(fields.get("epsilon"), site.epsilon)
            sent = _number(fields.get("bytes_sent"), None)
            site.bytes_sent = site.bytes_sent if sent is None else int(sent)
            self._move(site, action, fields)
        if action == "phase":
            self.phase = clean(fields.get("name", ""))
        elif action == "study.paused":
            self.phase = f"paused: {clean(fields.get('reason', ''))}"
        elif action == "round.opened":
            self._open(fields)
        elif action == "round.committed":
            self.committed += 1
        elif action == "round.abandoned":
            self.abandoned += 1

    def _open(self, fields: Mapping[str, Any]) -> None:
        self.phase, doing = _PHASES.get(str(fields.get("kind")), ("training", "training"))
        self.current = int(_number(fields.get("round"), None) or 0)
        asked = fields.get("sites", ())
        for name, site in self.sites.items():
            if name in asked:
                site.state, site.detail = doing, ""

    @staticmethod
    def _move(site: SiteLine, action: str, fields: Mapping[str, Any]) -> None:
        if action in ("site.starting", "site.online", "site.replied"):
            site.state, site.detail = action.removeprefix("site."), ""
        elif action == "site.refused":
            site.state, site.detail = "refused", clean(fields.get("code", ""))
        elif action == "site.lost":
            site.state, site.detail = "lost", clean(fields.get("reason", ""))


def event_line(action: str, fields: Mapping[str, Any], *, header: Header) -> str:
    """One event in words, on one line, with delta and unit beside every epsilon."""
    get = {key: clean(value) for key, value in fields.items()}.get
    number, site = get("round", "?"), get("site", "?")
    match action:
        case "round.opened":
            of = f"{number} of {get('rounds', '?')}"
            what = {"evaluate": "evaluation", "statistics": f"statistics, release {of}"}.get(
                str(fields.get("kind")), f"round {of}"
            )
            line = f"{what} opened: {get('sites', '')}"
        case "round.committed":
            line = f"round {number} committed: {get('sites', '')}"
        case "round.abandoned":
            line = (
                f"round {number} ABANDONED: {get('good', '?')} good replies, expected at least "
                f"{get('quorum', '?')}; refused: {get('refused') or 'none'}; "
                f"lost: {get('lost') or 'none'}"
            )
        case "site.replied":
            line = f"round {number}: {site} replied"
        case "site.refused":
            when = f"round {number}: " if "round" in fields else ""
            line = f"{when}{site} refused ({get('code', '?')})"
        case "site.lost":
            line = f"round {number}: {site} lost: {get('reason', '?')}"
        case "site.starting" | "site.online":
            line = f"{site} {action.removeprefix('site.')}"
        case "study.paused":
            line = f"PAUSED: {get('reason', '?')}; connected: {get('sites') or 'none'}"
        case "phase":
            line = get("name", "")
        case _:
            line = f"{clean(action)} {site}" if "site" in fields else clean(action)
    epsilon = _number(fields.get("epsilon"), None)
    if epsilon is not None:
        cost = epsilon_text(epsilon, delta=header.delta, per=unit_text(header.unit))
        line += f", charged so far {cost}"
    if "bytes_sent" in fields:
        line += f", sent {bytes_text(int(_number(fields['bytes_sent'], None) or 0))}"
    return line


def clean(value: object) -> str:
    """`value` as printable text of one line: a terminal sequence from elsewhere stays harmless."""
    if isinstance(value, (list, tuple)):
        value = ", ".join(str(item) for item in value)
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def _number(value: object, default: float | None) -> float | None:
    return float(value) if isinstance(value, (int, float)) else default
