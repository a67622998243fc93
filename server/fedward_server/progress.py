"""How far a study is: what a run needs to go on where the one before it ended.

A checkpoint holds everything up to the last committed round, in one file that is replaced at once.
What came after it stands in the run's log, which is written first: a round that was opened and not
closed is asked again under the same key, so that a site answers from its store and pays once.
"""

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from fedward_common.arrays import Array, numeric_parts
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import LedgerError, ProtocolError
from fedward_common.ids import SiteId
from fedward_common.wire import Octets

FORMAT: Final = "fedward-checkpoint/1"
LENGTH: Final = struct.Struct(">Q")
DIGEST_BYTES: Final = 64

Numbers = Mapping[str, npt.NDArray[Any]]
"""Name -> array of any numeric type: the state of an optimiser or of an average."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFile:
    """A file beside a checkpoint that holds its model, and the SHA-256 of its bytes."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A study after its last committed round. `next_round` counts releases in statistics.

    `sites` are those whose replies are in the last committed round; `totals` what each release of
    statistics gave; `attempts` the highest attempt so far; `counts` or `pooled` the evaluation, if
    it is over; `log_seq` and `log_sha256` the head of the run's log when it was written.
    """

    study: str
    next_round: int = 1
    committed: int = 0
    abandoned: int = 0
    sites: tuple[SiteId, ...] = ()
    model: Mapping[str, Array] = field(default_factory=dict)
    optimiser: Numbers = field(default_factory=dict)
    average: Numbers = field(default_factory=dict)
    refusals: Mapping[SiteId, str] = field(default_factory=dict)
    totals: tuple[Mapping[str, Any] | None, ...] = ()
    counts: Mapping[SiteId, list[list[float]]] | None = None
    pooled: Mapping[str, Any] | None = None
    validations: tuple[tuple[int, float | None], ...] = ()
    attempts: int = 0
    log_seq: int = 0
    log_sha256: str = ""

    @property
    def evaluated(self) -> bool:
        """Whether the evaluation is in it."""
        return self.counts is not None or self.pooled is not None

    @property
    def validated(self) -> bool:
        """Whether the model of the last round was validated, so that it was kept before."""
        return bool(self.validations) and self.validations[-1][0] == self.next_round - 1

    def to_bytes(self) -> bytes:
        """The checkpoint whole."""
        return b"".join(self.parts())

    def parts(self, *, model_file: ModelFile | None = None) -> list[Octets]:
        """The checkpoint: the digest of the rest, the length of the facts, the facts, tensors.

        In pieces, one after the other, which are not copies of the tensors. The model is not among
        them where it stands in `model_file`.
        """
        facts = {
            "format": FORMAT,
            "study": self.study,
            "next_round": self.next_round,
            "committed": self.committed,
            "abandoned": self.abandoned,
            "sites": list(self.sites),
            "refusals": dict(self.refusals),
            "totals": [None if one is None else dict(one) for one in self.totals],
            "counts": None if self.counts is None else dict(self.counts),
            "pooled": None if self.pooled is None else dict(self.pooled),
            "validations": [list(one) for one in self.validations],
            "attempts": self.attempts,
            "log_seq": self.log_seq,
            "log_sha256": self.log_sha256,
        }
        if model_file is not None:
            facts["model_file"] = {"name": model_file.name, "sha256": model_file.sha256}
        head = canonical_json(facts)
        tensors = self._tensors({} if model_file else self.model)
        rest = [LENGTH.pack(len(head)) + head, *numeric_parts(tensors)]
        return [sha256_hex(rest).encode(), *rest]

    def _tensors(self, model: Mapping[str, Array]) -> dict[str, npt.NDArray[Any]]:
        groups = {"model": model, "optimiser": self.optimiser, "average": self.average}
        return {
            f"{group}/{name}": tensors[name]
            for group, tensors in groups.items()
            for name in sorted(tensors)
        }

    @classmethod
    def from_bytes(cls, data: bytes, *, read: Callable[[str], bytes] | None = None) -> Self:
        """The progress in a checkpoint. `read` gives the bytes of a model's file by its name.

        Raises:
            LedgerError: it is damaged, or of another version; or so is the model's file.
        """
        digest, rest = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        try:
            if sha256_hex(rest).encode() != digest:
                raise ValueError("digest")
            (size,) = LENGTH.unpack_from(rest)
            start = LENGTH.size + size
            facts: Any = json.loads(rest[LENGTH.size : start])
            if facts.pop("format") != FORMAT:
                raise ValueError("format")
            groups = _groups(load(rest[start:]))
            kept = facts.pop("model_file", None)
            if kept is not None:
                groups["model"] = _model_of(ModelFile(**kept), read)
            return cls(
                **facts
                | {"sites": tuple(SiteId(site) for site in facts["sites"])}
                | {"totals": tuple(facts["totals"])}
                | {"validations": tuple((n, auc) for n, auc in facts.get("validations", ()))},
                model=groups["model"],
                optimiser=groups["optimiser"],
                average=groups["average"],
            )
        except (
            ValueError,
            KeyError,
            TypeError,
            OSError,
            struct.error,
            SafetensorError,
        ) as error:
            raise LedgerError(
                "checkpoint: expected a whole one of this version, found something else. Restore "
                "the newest copy of the run's folder"
            ) from error


def _model_of(file: ModelFile, read: Callable[[str], bytes] | None) -> dict[str, Array]:
    data = b"" if read is None else read(file.name)
    if sha256_hex(data) != file.sha256:
        raise ValueError("model")
    return load(data)


def _groups(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, dict[str, npt.NDArray[Any]]]:
    groups: dict[str, dict[str, npt.NDArray[Any]]] = {"model": {}, "optimiser": {}, "average": {}}
    for name in sorted(tensors):
        group, _, rest = name.partition("/")
        groups[group][rest] = tensors[name]
    return groups


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """An exchange that was opened and whose end is not in the log."""

    kind: str
    round: int
    attempt: int
    cohort: tuple[SiteId, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """Where a run begins: `progress` with what the log knows beyond it.

    `opened` is the exchange that was under way; `untold` says that the last committed round is not
    in the log yet; `burnt_evaluations` are the rounds after which an evaluation was abandoned;
    `fresh` says that nothing happened before; `attempts` is the highest attempt of any exchange.
    """

    progress: Progress
    opened: Opened | None = None
    untold: bool = False
    burnt_evaluations: frozenset[int] = frozenset()
    fresh: bool = True
    attempts: int = 0

    def burnt(self) -> Self:
        """The same without the exchange that was under way: it is abandoned."""
        if self.opened is None:
            return self
        if self.opened.kind == "evaluate":
            burnt = self.burnt_evaluations | {self.opened.round}
            return replace(self, opened=None, burnt_evaluations=burnt)
        progress = replace(
            self.progress,
            next_round=self.opened.round + 1,
            abandoned=self.progress.abandoned + 1,
        )
        return replace(self, opened=None, progress=progress)


def resumed(
    progress: Progress, events: Iterable[tuple[str, Mapping[str, Any]]], *, final: frozenset[str]
) -> Resumed:
    """Where to go on after `progress`, given the events of the log after it was written.

    `final` are the refusals after which a site is not asked again.
    """
    opened: Opened | None = None
    burnt: set[int] = set()
    fresh = progress.next_round == 1
    told = fresh or progress.evaluated or progress.validated
    attempts = 0
    refusals, following, abandoned = dict(progress.refusals), progress.next_round, 0
    for action, fields in events:
        attempts = max(attempts, int(fields.get("attempt", 0)))
        if action == "round.opened":
            fresh = False
            opened = Opened(
                kind=str(fields["kind"]),
                round=int(fields["round"]),
                attempt=int(fields.get("attempt", 0)),
                cohort=tuple(SiteId(site) for site in fields["sites"]),
            )
        elif action == "round.abandoned":
            if opened is not None and opened.kind == "evaluate":
                burnt.add(opened.round)
            elif fields["round"] >= following:
                following, abandoned = int(fields["round"]) + 1, abandoned + 1
            opened = None
        elif action == "round.committed":
            told, opened = True, None
        elif action == "site.refused" and fields["code"] in final:
            refusals[SiteId(fields["site"])] = str(fields["code"])
    if opened is not None and opened.kind != "evaluate" and opened.round < following:
        opened = None  # its model is in the checkpoint; only the word of it is missing
    return Resumed(
        progress=replace(
            progress,
            next_round=following,
            abandoned=progress.abandoned + abandoned,
            refusals=refusals,
        ),
        opened=opened,
        untold=not told and following == progress.next_round,
        burnt_evaluations=frozenset(burnt),
        fresh=fresh,
        attempts=max(attempts, progress.attempts),
    )


def require_study(progress: Progress, digest: str) -> None:
    """Returns when the checkpoint is of this study. Raises ProtocolError otherwise."""
    if progress.study != digest:
        raise ProtocolError("checkpoint: expected one of this study, found another's")
