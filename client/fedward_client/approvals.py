"""What the hospital's people said, in the guard's own order: what is approved, and what is paused.

No I/O here. A person says something by signing a statement (rules 16); the guard accepts each
statement once, and of two about the same thing the one that it accepted last holds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from fedward_client.settings import Approver
from fedward_common.errors import PolicyRefused, ProtocolError
from fedward_common.trust.statements import MAX_STATEMENT_BYTES, Statement

STUDY_FACTS: Final = frozenset({"study", "study_id", "site"})
PLUGIN_FACTS: Final = frozenset({"model", "package", "version", "sha256", "site"})
OPENING: Final[Mapping[str, tuple[str, frozenset[str]]]] = {
    "study-approval": ("study", STUDY_FACTS),
    "bundle-approval": ("bundle", frozenset({"bundle", "site"})),
    "plugin-approval": ("plugin", PLUGIN_FACTS),
    "resume": ("pause", frozenset({"site"})),
}
"""What lets more happen: kind -> what it is about, and exactly which facts it states."""
CLOSING: Final[Mapping[str, tuple[str, frozenset[str]]]] = {
    "study-revocation": ("study", STUDY_FACTS),
    "bundle-revocation": ("bundle", frozenset({"bundle", "site"})),
    "plugin-revocation": ("plugin", PLUGIN_FACTS),
    "pause": ("pause", frozenset({"site"})),
}
"""What lets less happen."""
KINDS: Final = {**OPENING, **CLOSING}

Subject = tuple[str, ...]
"""What a statement is about, such as ("study", digest)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """A statement and when the guard accepted it, by its own clock."""

    statement: Statement
    at: datetime

    @property
    def opens(self) -> bool:
        """Whether it lets more happen."""
        return self.statement.kind in OPENING

    @property
    def since(self) -> datetime:
        """When it was said, as far as it can be believed: never after it was accepted."""
        return min(self.statement.time, self.at)


class Standing:
    """What holds at one site after the statements so far.

    Guarantees: nothing is approved before somebody on the list of approvers said so; each statement
    counts once, so an old approval that comes again after a revocation changes nothing; an approval
    by somebody who is no longer on the list does not hold, a revocation or a pause does.
    """

    def __init__(self, *, site: str, approvers: Sequence[Approver] = ()) -> None:
        self._site = site
        self._approvers = {approver.public_key: approver.name for approver in approvers}
        self._said: dict[str, Said] = {}
        self._latest: dict[Subject, Said] = {}

    def check(self, data: bytes) -> Statement:
        """The statement in `data`, if this site accepts it now. Nothing changes. It holds then:

        1. it is a statement of a known kind with exactly that kind's facts, signed by its key;
        2. it is about this site;
        3. the key is on this site's list of approvers, under the name in the statement;
        4. it was not accepted before;
        5. what lets more happen was said after whatever stopped it. (The signer's clock orders
           nothing; this only keeps an approval that was signed long ago out of the way.)

        Raises:
            ProtocolError: step 1 or 2.
            SignatureRefused: another key signed it, or it was changed.
            PolicyRefused: step 3, 4 or 5.
        """
        # 1.
        statement = read_statement(data)
        # 2.
        if statement.facts["site"] != self._site:
            raise ProtocolError(f"statement: expected one about site {self._site}, found another")
        # 3.
        if self._approvers.get(statement.public_key) != statement.person:
            raise PolicyRefused(
                f"statement: expected a name and a key under [[approvers]] of site.toml, found "
                f"{statement.person!r} with the key {statement.public_key[:16]}..."
            )
        # 4.
        if statement.sha256 in self._said:
            raise PolicyRefused(
                "statement: expected a new one, found one that was accepted before. Sign it again"
            )
        # 5.
        latest = self._latest.get(subject(statement))
        if (
            statement.kind in OPENING
            and latest is not None
            and not latest.opens
            and statement.time < latest.since.replace(microsecond=0)
        ):
            raise PolicyRefused(
                f"statement: expected it to be signed after the {latest.statement.kind} by "
                f"{latest.statement.person}, found it older. Sign it again"
            )
        return statement

    def accept(self, statement: Statement, *, at: datetime) -> None:
        """Counts a statement that `check` returned, or that was accepted in an earlier life.

        Whether its key is (still) on the list is looked at when somebody asks what holds.
        """
        said = Said(statement=statement, at=at)
        self._said[statement.sha256] = said
        if said.opens and statement.public_key not in self._approvers:
            return
        self._latest[subject(statement)] = said

    def approval(self, study: str) -> Said | None:
        """The approval of the study with this digest, or None when nobody's stands."""
        return self._open(("study", study))

    def revocation(self, study: str) -> Said | None:
        """The revocation that stands of the study with this digest, or None."""
        said = self._latest.get(("study", study))
        return None if said is None or said.opens else said

    @property
    def pause(self) -> Said | None:
        """The pause that stands, or None."""
        said = self._latest.get(("pause",))
        return None if said is None or said.opens else said

    def allows_bundle(self, sha256: str) -> bool:
        """Whether somebody's approval of the app bundle stands."""
        return self._open(("bundle", sha256)) is not None

    def plugins(self, model: str) -> frozenset[tuple[str, str, str]]:
        """(package, version, SHA-256) of every approved plugin for a model's name."""
        return frozenset(
            (about[2], about[3], about[4])
            for about, said in self._latest.items()
            if about[0] == "plugin" and about[1] == model and said.opens
        )

    def history(self) -> tuple[Said, ...]:
        """Every statement, in the order in which it was accepted."""
        return tuple(self._said.values())

    def _open(self, about: Subject) -> Said | None:
        said = self._latest.get(about)
        return said if said is not None and said.opens else None


def read_statement(data: bytes) -> Statement:
    """The statement of one of `KINDS` in `data`, with exactly its facts and a good signature.

    Raises:
        ProtocolError: something else.
        SignatureRefused: another key signed it, or it was changed.
    """
    kind = _kind(data)
    statement = Statement.parse(data, kind=kind)
    if statement.facts.keys() != KINDS[kind][1] or not all(
        isinstance(fact, str) for fact in statement.facts.values()
    ):
        raise ProtocolError(
            f"statement: expected {', '.join(sorted(KINDS[kind][1]))} in a {kind}, found other "
            "facts"
        )
    return statement


def subject(statement: Statement) -> Subject:
    """What the statement is about: two statements of one subject contradict or repeat each other.

    The id of a study is for people; its digest alone says which study it is.
    """
    about, facts = KINDS[statement.kind][0], statement.facts
    names = {
        "study": ("study",),
        "bundle": ("bundle",),
        "plugin": ("model", "package", "version", "sha256"),
        "pause": (),
    }[about]
    return (about, *(str(facts[name]) for name in names))


def _kind(data: bytes) -> str:
    kind: Any = None
    if len(data) <= MAX_STATEMENT_BYTES:
        try:
            value: Any = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ProtocolError(
            f"statement: expected one of {', '.join(sorted(KINDS))}, found something else"
        )
    return kind
