"""Whether a study names this site with its keys, is allowed here and fits the data."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from fedward_client.adapters.key_files import read_passphrase, read_signing_key
from fedward_client.data.site import SiteSource
from fedward_client.guard.main import policy_of
from fedward_client.isolation.accounts import node_public_key
from fedward_client.settings import SiteSettings
from fedward_common.doctor import Finding, fail, ok, warn
from fedward_common.errors import ConfigError, FedwardError, PolicyRefused
from fedward_common.ids import SiteId
from fedward_common.study.encoding import TablePart
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import is_statistics
from fedward_common.trust.certificates import node_key_sha256
from fedward_common.trust.signing import key_sha256


def signed_study(name: str, path: Path) -> tuple[StudySpec | None, Finding]:
    """The study in `path` where its signature holds."""
    try:
        study = SignedStudy.parse(path.read_bytes()).verify()
    except OSError as error:
        return None, fail(name, f"{path}: {error.strerror}", "Name the signed study (JSON)")
    except FedwardError as error:
        return None, fail(name, f"{path}: {error}", "Get the signed study again from its lead")
    return study, ok(name, f"{study.id} {study.digest[:16]}..., signature holds")


def study_findings(settings: SiteSettings, study: StudySpec, *, now: datetime) -> Iterator[Finding]:
    """Keys, policy and data of the study."""
    yield study_keys("study.keys", settings, study)
    yield study_policy("study.policy", settings, study, now=now)
    parts: tuple[TablePart, ...] = ("train", "test") if study.releases else ("train",)
    for part in parts:
        yield study_data(f"study.data.{part}", settings, study, part=part)


def study_keys(name: str, settings: SiteSettings, study: StudySpec) -> Finding:
    """Whether the study names this site with the keys it has."""
    entry = study.site(SiteId(settings.site))
    if entry is None:
        return fail(name, f"{settings.site} is not in the study", "Ask the lead to include it")
    try:
        passphrase = read_passphrase(settings.keys.passphrase_file)
        own = read_signing_key(settings.keys.signing_key, passphrase=passphrase)
        signing = key_sha256(own.public_hex)
        node = node_key_sha256(node_public_key(settings))
    except (ConfigError, OSError):
        return fail(name, "not compared: this site's keys are not in order", "Mend them first")
    if (signing, node) != (entry.key_sha256, entry.node_key_sha256):
        fix = "Send the lead this site's present public keys; the study must be signed again"
        return fail(name, f"the study names other keys for {settings.site}", fix)
    return ok(name, "the study names this site's signing key and node key")


def study_policy(name: str, settings: SiteSettings, study: StudySpec, *, now: datetime) -> Finding:
    """Whether the site's policy allows the study now."""
    try:
        policy_of(settings).permits(study, now=now)
    except PolicyRefused as error:
        return warn(
            name,
            " ".join(str(error).split()),
            "Decide: `fedward-client studies approve`, or decline it",
        )
    except FedwardError as error:
        return fail(name, " ".join(str(error).split()), "Mend what `approvals` says first")
    return ok(name, "allowed by [policy] and approved")


def study_data(name: str, settings: SiteSettings, study: StudySpec, *, part: TablePart) -> Finding:
    """Whether every row of `part` fits the study's schema; columns and rules, never a value.

    A study of statistics has no parts and no rule that a row could break; it needs its columns.
    """
    try:
        if is_statistics(study):
            SiteSource(settings).rows(study)
            return ok(name, "the study's columns are there")
        SiteSource(settings).checked_records(study, part=part)
    except FedwardError as error:
        return fail(
            name,
            str(error),
            "Mend the data. A patient whose rows do not fit would count as absent in the study",
        )
    return ok(name, "every row fits the study's schema")
