"""What a check found, how bad it is and how to mend it.

`found` and `fix` name settings and paths, never what is inside a file, a key, a patient's value or
the text of an environment variable (a proxy's URL may hold a password).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Level = Literal["ok", "warn", "fail"]
FORMAT: Final = "fedward-doctor/1"
EXIT_CODES: Final[Mapping[Level, int]] = {"ok": 0, "fail": 1, "warn": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What was looked at, what was found and, unless all is well, what to do."""

    name: str
    level: Level
    found: str
    fix: str = ""


def ok(name: str, found: str) -> Finding:
    """A finding that asks for nothing."""
    return Finding(name=name, level="ok", found=found)


def warn(name: str, found: str, fix: str) -> Finding:
    """A finding with which Fedward runs, but not as it should."""
    return Finding(name=name, level="warn", found=found, fix=fix)


def fail(name: str, found: str, fix: str) -> Finding:
    """A finding with which Fedward does not run, or must not."""
    return Finding(name=name, level="fail", found=found, fix=fix)


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """All findings about one side, in the order they were made."""

    subject: str
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The worst level found."""
        found = {finding.level for finding in self.findings}
        return "fail" if "fail" in found else "warn" if "warn" in found else "ok"

    @property
    def exit_code(self) -> int:
        """0 all is well, 1 something fails, 2 warnings only."""
        return EXIT_CODES[self.level]

    def as_json(self) -> dict[str, Any]:
        """A JSON value: `format`, `subject`, `level`, `findings` (name, level, found, fix)."""
        return {
            "format": FORMAT,
            "subject": self.subject,
            "level": self.level,
            "findings": [
                {"name": f.name, "level": f.level, "found": f.found, "fix": f.fix}
                for f in self.findings
            ],
        }

    def text(self) -> str:
        """For people: a line per finding, and below it how to fix it."""
        width = max((len(finding.name) for finding in self.findings), default=0)
        lines = [f"doctor: {self.subject}"]
        for finding in self.findings:
            mark = finding.level if finding.level == "ok" else finding.level.upper()
            lines.append(f"  {mark:<4}  {finding.name:<{width}}  {finding.found}")
            if finding.fix:
                lines.append(f"  {'':<4}  {'':<{width}}  -> {finding.fix}")
        counts = dict.fromkeys(EXIT_CODES, 0)
        for finding in self.findings:
            counts[finding.level] += 1
        lines.append(", ".join(f"{count} {level}" for level, count in counts.items()))
        return "\n".join(lines)
