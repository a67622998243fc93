"""The hospital's veto: whether a study may run here and whether its answer may leave.

Asked before any record is read and again for every message that goes out, with the time of asking.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, tzinfo
from typing import ClassVar, Final
from zoneinfo import ZoneInfo

from fedward_client.approvals import Said, Standing
from fedward_client.settings import PolicyRules, SiteSettings
from fedward_common.errors import PolicyRefused
from fedward_common.privacy.ledger_values import Limits
from fedward_common.study.evaluation import EvaluationRelease
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.harmonisation import SiteHarmonisation
from fedward_common.study.multimodal import MultimodalData, parts_of
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.statistics import ColumnStatistics, ReleasesOnly, Table
from fedward_common.study.tabular import TabularData
from fedward_common.study.variant_statistics import VariantRelease

STEWARD: Final = "Ask the data steward or choose another study."
OUTPUTS: Final[Mapping[str, str]] = {
    "train": "update",
    "evaluate": "evaluation",
    "statistics": "statistics",
    "phase": "update",
}
"""Kind of an instruction -> the output that its answer is."""


class Paused(PolicyRefused):
    """Somebody paused this site: nothing but this word leaves."""

    code: ClassVar[str] = "paused"


class OutOfHours(PolicyRefused):
    """It is not one of the hours at which this site takes part."""

    code: ClassVar[str] = "hours"


class EthicsExpired(PolicyRefused):
    """The last day of the study's ethics approval is over."""

    code: ClassVar[str] = "ethics"


class NotApproved(PolicyRefused):
    """Nobody of this site approved the study, or the approval was taken back."""

    code: ClassVar[str] = "not-approved"


@dataclass(frozen=True, kw_only=True, slots=True)
class SitePolicy:
    """The rules of one hospital, the file they stand in, and what its people said so far."""

    rules: PolicyRules
    source: str
    standing: Standing
    patient_keys: frozenset[str] = frozenset()
    keyless_images: bool = False
    family_keys: frozenset[str | None] = frozenset()
    absent_modalities: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: SiteSettings, standing: Standing | None = None) -> "SitePolicy":
        """The policy of a site; without its statements nothing is approved."""
        nobody = Standing(site=settings.site, approvers=settings.approvers)
        return cls(
            rules=settings.policy,
            source=str(settings.source),
            standing=nobody if standing is None else standing,
            patient_keys=frozenset(
                table.patient_key for table in settings.tables if table.patient_key is not None
            ),
            keyless_images=bool(settings.owned)
            and all(one.no_patient_key for one in settings.owned),
            family_keys=frozenset(one.family_key for one in settings.genotypes),
            absent_modalities=frozenset(settings.absent_modalities),
        )

    @property
    def limits(self) -> Limits:
        """What the budget ledger enforces, from the same rules."""
        return Limits(
            max_epsilon_per_study=self.rules.max_epsilon_per_study,
            max_epsilon_total=self.rules.max_epsilon_total,
            delta=self.rules.delta,
            max_epsilon_if_all_others_collude=self.rules.max_epsilon_if_all_others_collude,
        )

    def permits(self, study: StudySpec, *, now: datetime, kind: str | None = None) -> None:
        """Returns when the policy allows `study` at `now`; no figure of the study is believed.

        With the `kind` of an instruction, also that its answer is an output that may leave.

        Checked here: the pause, ethics, hours, task, outputs, privacy unit and the column that says
        who is one patient, declared epsilon and delta, noise, releases, approval. Not here but in
        the ledger: that the declared epsilon is what the noise really gives, and what all studies
        come to together. Not here but where they are counted: bytes.

        Raises:
            PolicyRefused: what was asked, what the limit is and where it stands.
        """
        objection = next(self.objections(study, now=now, kind=kind), None)
        if objection is not None:
            raise objection

    def objections(
        self, study: StudySpec, *, now: datetime, kind: str | None = None
    ) -> Iterator[PolicyRefused]:
        """Everything that speaks against `study` at `now`, one by one; nothing when it may run."""
        yield from self._moment(study, now)
        yield from self._outputs(study, kind)
        yield from self._genomic(study)
        yield from self._privacy(study)
        yield from self._secure_sum(study)
        yield from self._releases(study)
        yield from self._approval(study)

    def require_not_paused(self) -> None:
        """Returns unless somebody paused this site.

        Raises:
            Paused: by whom.
        """
        for objection in self._pause():
            raise objection

    def allows_bundle(self, sha256: str) -> bool:
        """Whether the hospital approved the app bundle with this digest."""
        return sha256 in self.rules.approved_bundles or self.standing.allows_bundle(sha256)

    def _pause(self) -> Iterator[PolicyRefused]:
        pause = self.standing.pause
        if self.rules.paused:
            yield Paused(
                f"Site policy refuses everything: paused in {self.source} is true. Nothing leaves "
                "until that is changed and the site restarted"
            )
        elif pause is not None:
            yield Paused(
                f"Site policy refuses everything: {pause.statement.person} paused this site at "
                f"{_when(pause)}. An approver ends it with `fedward-client resume`"
            )

    def _moment(self, study: StudySpec, now: datetime) -> Iterator[PolicyRefused]:
        yield from self._pause()
        last = study.ethics_valid_until
        if last is not None and now.astimezone(UTC).date() > date.fromisoformat(last):
            yield EthicsExpired(
                f"Site policy refuses study {study.id}: its ethics approval was valid until {last} "
                "(UTC). A renewed approval is a new study, to be signed and approved again"
            )
        rules = self.rules
        if rules.allowed_hours and not any(
            _within(hours, now.astimezone(zone_of(rules.time_zone)).time())
            for hours in rules.allowed_hours
        ):
            yield OutOfHours(
                f"Site policy refuses study {study.id}: it is not one of the allowed_hours in "
                f"{self.source}: {', '.join(rules.allowed_hours)} {rules.time_zone}"
            )

    def _outputs(self, study: StudySpec, kind: str | None) -> Iterator[PolicyRefused]:
        if study.task.kind not in self.rules.allowed_tasks:
            yield self._refused(
                study,
                f"its task is {study.task.kind}, allowed_tasks in {self.source} is "
                f"{', '.join(self.rules.allowed_tasks)}. {STEWARD}",
            )
        if kind == "phase" and not self.rules.allow_phases:
            yield self._refused(
                study,
                f"it opens a phase, allow_phases in {self.source} is false. Its rounds go by "
                "messages, one by one",
            )
        needed = _outputs_of(study) if kind is None else {OUTPUTS.get(kind, kind)}
        for output in sorted(needed - self.rules.outputs):
            switch = "" if output == "update" else f" (with allow_{output})"
            yield self._refused(
                study,
                f"it sends out {output}, allowed_outputs{switch} in {self.source} is "
                f"{', '.join(sorted(self.rules.outputs)) or 'empty'}. {STEWARD}",
            )

    def _privacy(self, study: StudySpec) -> Iterator[PolicyRefused]:
        rules, dp = self.rules, study.dp
        for data in parts_of(study.data):
            if (
                self.patient_keys
                and isinstance(data, TabularData | Table)
                and data.patient_key not in self.patient_keys
            ):
                # By another column a patient would be many, and nobody on the list of exclusions.
                yield self._refused(
                    study,
                    f"it takes column {data.patient_key} for who is one patient, patient_key in "
                    f"[[data]] of {self.source} is {', '.join(sorted(self.patient_keys))}. "
                    f"{STEWARD}",
                )
        if isinstance(dp, DpSgd) and dp.unit == "record" and not self.keyless_images:
            # Rules 10: a source that says who is one patient is never read per record.
            yield self._refused(
                study,
                "its epsilon is per record; NOT per patient, and no [[data]] of kind images, "
                f"notes, sequences, molecules or drug-targets in {self.source} says "
                f"no_patient_key = true. "
                f"{STEWARD}",
            )
        plan = _plan_of(study)
        if plan is None:
            yield self._refused(
                study, f"its privacy plan ({dp.kind}) is none that is known per patient. {STEWARD}"
            )
            return
        epsilon, delta = plan
        # The limit means the admission figure. A declared PLD figure is below it, so above the
        # limit it is refused at once; below, the ledger computes.
        if not epsilon <= rules.max_epsilon_per_study:
            yield self._refused(
                study,
                f"it asks for epsilon {epsilon:g} per patient at delta {delta:g}, the limit "
                f"(max_epsilon_per_study) in {self.source} is {rules.max_epsilon_per_study:g}. "
                f"{STEWARD}",
            )
        if not delta <= rules.delta:
            yield self._refused(
                study,
                f"its delta is {delta:g}, the limit (delta) in {self.source} is "
                f"{rules.delta:g}. {STEWARD}",
            )
        if isinstance(dp, DpSgd) and not dp.noise_multiplier >= rules.min_noise:
            yield self._refused(
                study,
                f"its noise multiplier is {dp.noise_multiplier:g}, the least (min_noise) in "
                f"{self.source} is {rules.min_noise:g}. {STEWARD}",
            )

    def _genomic(self, study: StudySpec) -> Iterator[PolicyRefused]:
        """Where genomes may be learned from, and that kin are one unit where the site knows them.

        `genomic` is asked of the data's kind as well: a field of the study alone proves nothing.
        """
        if not (study.genomic or study.data.is_genomic):
            return
        allowed = self.rules.genomic_jurisdictions
        if allowed is not None and not study.jurisdictions:
            yield self._refused(
                study,
                "it is genomic and does not say where its coordinator and sites are "
                f"(jurisdictions), genomic_jurisdictions in {self.source} allows "
                f"{', '.join(allowed) or 'none'}. {STEWARD}",
            )
        outside = sorted(set(study.jurisdictions) - set(allowed or ()))
        if allowed is not None and outside:
            yield self._refused(
                study,
                f"it is genomic and goes to {', '.join(outside)}, genomic_jurisdictions in "
                f"{self.source} allows {', '.join(allowed) or 'none'}. {STEWARD}",
            )
        for data in parts_of(study.data):
            if (
                isinstance(data, Genotypes)
                and self.family_keys
                and data.family_key not in self.family_keys
            ):
                yield self._refused(
                    study,
                    f"its families are by column {data.family_key or '(none)'}, family_key in "
                    f"[[data]] of {self.source} is "
                    f"{', '.join(k or '(none)' for k in self.family_keys)}: kin that are known "
                    f"are one privacy unit. {STEWARD}",
                )
        table = study.data.kin_from if isinstance(study.data, MultimodalData) else None
        if table in self.absent_modalities and self.family_keys - {None}:
            # Its patients would be there without their kin.
            yield self._refused(
                study,
                f"its families are those of modality {table}, which absent_modalities in "
                f"{self.source} names, while a [[data]] has family_key: kin that are known are one "
                f"privacy unit. {STEWARD}",
            )

    def _secure_sum(self, study: StudySpec) -> Iterator[PolicyRefused]:
        rules = self.rules
        if rules.require_secure_sum and not study.secure_sum:
            yield self._refused(
                study,
                f"it shows this site's numbers to the coordinator, require_secure_sum in "
                f"{self.source} is true. {STEWARD}",
            )
        semi_honest = study.secure_sum and study.thresholds.mode != "malicious"
        if semi_honest and not rules.allow_semi_honest:
            yield self._refused(
                study,
                "its secure sum trusts the coordinator to follow the protocol (semi-honest), "
                f"allow_semi_honest in {self.source} is false. {STEWARD}",
            )

    def _releases(self, study: StudySpec) -> Iterator[PolicyRefused]:
        rules = self.rules
        if sum(isinstance(release, EvaluationRelease) for release in study.releases) > 1:
            yield self._refused(
                study, f"one release of binned scores is allowed, it asks for more. {STEWARD}"
            )
        for release in study.releases:
            known = EvaluationRelease | ColumnStatistics | VariantRelease | SiteHarmonisation
            if not isinstance(release, known):
                yield self._refused(
                    study, f"its release {release.kind} is none that is known here. {STEWARD}"
                )
            if isinstance(release, EvaluationRelease) and release.times > rules.max_evaluations:
                yield self._refused(
                    study,
                    f"it evaluates its model up to {release.times} times, the most "
                    f"(max_evaluations) in {self.source} is {rules.max_evaluations}. {STEWARD}",
                )
            least = rules.min_cell_size
            if (
                isinstance(release, ColumnStatistics | VariantRelease)
                and release.min_cell_size < least
            ):
                yield self._refused(
                    study,
                    f"it shows numbers of patients from {release.min_cell_size} on, the least "
                    f"(min_cell_size) in {self.source} is {least}. {STEWARD}",
                )

    def _approval(self, study: StudySpec) -> Iterator[PolicyRefused]:
        if self.standing.approval(study.digest) is not None:
            return
        revoked = self.standing.revocation(study.digest)
        if revoked is not None:
            yield NotApproved(
                f"Site policy refuses study {study.id}: {revoked.statement.person} revoked digest "
                f"{study.digest} at {_when(revoked)}"
            )
            return
        yield NotApproved(
            f"Site policy refuses study {study.id}: nobody of this site approved its digest "
            f"{study.digest}. Read it (`fedward-client studies show`), compare the digest with the "
            "other hospitals and approve it (`fedward-client studies approve`)"
        )

    def _refused(self, study: StudySpec, why: str) -> PolicyRefused:
        return PolicyRefused(f"Site policy refuses study {study.id}: {why}")


def zone_of(name: str) -> tzinfo:
    """The time zone of a name that site.toml allows; UTC needs no table of zones."""
    return UTC if name == "UTC" else ZoneInfo(name)


def _when(said: Said) -> str:
    return said.at.astimezone(UTC).isoformat(timespec="seconds")


def _within(hours: str, now: time) -> bool:
    """Whether `now` is in a span such as 20:00-06:00: its first minute in, its last out."""
    first, last = (time.fromisoformat(part) for part in hours.split("-"))
    return first <= now < last if first < last else now >= first or now < last


def _outputs_of(study: StudySpec) -> set[str]:
    """Every output that a study asks for."""
    outputs = {"update"} if isinstance(study.dp, DpSgd) else set()
    for release in study.releases:
        if isinstance(release, SiteHarmonisation):  # it stays at the site
            continue
        outputs.add("evaluation" if isinstance(release, EvaluationRelease) else "statistics")
    return outputs


def _plan_of(study: StudySpec) -> tuple[float, float] | None:
    """Declared epsilon and delta of a plan whose unit is known; None for any other."""
    dp = study.dp
    if isinstance(dp, DpSgd | ReleasesOnly) and dp.unit in ("patient", "family", "record"):
        return dp.epsilon, dp.delta
    return None
