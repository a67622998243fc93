"""The hospital's veto: whether a study may run here at all. Asked before any record is read."""

from dataclasses import dataclass
from typing import Final

from fedward_client.settings import PolicyRules, SiteSettings
from fedward_common.errors import PolicyRefused
from fedward_common.privacy.ledger import Limits
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.tabular import BinnedScores

STEWARD: Final = "Ask the data steward or choose another study."


@dataclass(frozen=True, kw_only=True, slots=True)
class SitePolicy:
    """The rules of one hospital and the file they stand in."""

    rules: PolicyRules
    source: str

    @classmethod
    def of(cls, settings: SiteSettings) -> "SitePolicy":
        """The policy of a site."""
        return cls(rules=settings.policy, source=str(settings.source))

    @property
    def limits(self) -> Limits:
        """What the budget ledger enforces, from the same rules."""
        return Limits(
            max_epsilon_per_study=self.rules.max_epsilon_per_study,
            max_epsilon_total=self.rules.max_epsilon_total,
            delta=self.rules.delta,
        )

    def permits(self, study: StudySpec) -> None:
        """Returns when the policy allows `study`; pure, and no figure of the study is believed.

        Checked here: task, privacy unit, declared epsilon and delta, noise, releases, approval by
        digest or trusted lead. Not here but in the ledger: that the declared epsilon is what the
        noise really gives, and what all studies come to together.

        Raises:
            PolicyRefused: what was asked, what the limit is and where it stands.
        """
        self._check_task(study)
        self._check_privacy(study)
        self._check_releases(study)
        self._check_approval(study)

    def allows_bundle(self, sha256: str) -> bool:
        """Whether the hospital approved the app bundle with this digest."""
        return sha256 in self.rules.approved_bundles

    def _check_task(self, study: StudySpec) -> None:
        if study.task.kind not in self.rules.allowed_tasks:
            raise self._refused(
                study,
                f"its task is {study.task.kind}, allowed_tasks in {self.source} is "
                f"{', '.join(self.rules.allowed_tasks)}. {STEWARD}",
            )

    def _check_privacy(self, study: StudySpec) -> None:
        rules, dp = self.rules, study.dp
        if not isinstance(dp, DpSgd) or dp.unit != "patient":
            raise self._refused(
                study,
                f"its privacy plan is not DP-SGD per patient, nothing else is known. {STEWARD}",
            )
        # The limit means the admission figure. A declared PLD figure is below it, so above the
        # limit it is refused at once; below, the ledger computes.
        if not dp.epsilon <= rules.max_epsilon_per_study:
            raise self._refused(
                study,
                f"it asks for epsilon {dp.epsilon:g} per patient at delta {dp.delta:g}, the limit "
                f"(max_epsilon_per_study) in {self.source} is {rules.max_epsilon_per_study:g}. "
                f"{STEWARD}",
            )
        if not dp.delta <= rules.delta:
            raise self._refused(
                study,
                f"its delta is {dp.delta:g}, the limit (delta) in {self.source} is "
                f"{rules.delta:g}. {STEWARD}",
            )
        if not dp.noise_multiplier >= rules.min_noise:
            raise self._refused(
                study,
                f"its noise multiplier is {dp.noise_multiplier:g}, the least (min_noise) in "
                f"{self.source} is {rules.min_noise:g}. {STEWARD}",
            )

    def _check_releases(self, study: StudySpec) -> None:
        if not study.releases:
            return
        if not self.rules.allow_evaluation:
            raise self._refused(
                study,
                f"it evaluates on this hospital's patients, allow_evaluation in {self.source} is "
                f"false. {STEWARD}",
            )
        if len(study.releases) > 1 or not isinstance(study.releases[0], BinnedScores):
            kinds = ", ".join(release.kind for release in study.releases)
            raise self._refused(
                study, f"one release of binned scores is allowed, it asks for {kinds}. {STEWARD}"
            )

    def _check_approval(self, study: StudySpec) -> None:
        rules, digest = self.rules, study.digest
        if digest in rules.approved_studies:
            return
        if not rules.auto_approve:
            raise self._refused(
                study,
                f"its digest {digest} is not among approved_studies in {self.source}. Read the "
                "study, compare the digest with the other hospitals and add it to approve.",
            )
        if study.lead_key_sha256 not in rules.trusted_leads:
            raise self._refused(
                study,
                f"its lead's key {study.lead_key_sha256} is not among trusted_leads in "
                f"{self.source}, and only their studies are approved without being listed. "
                f"{STEWARD}",
            )

    def _refused(self, study: StudySpec, why: str) -> PolicyRefused:
        return PolicyRefused(f"Site policy refuses study {study.id}: {why}")
