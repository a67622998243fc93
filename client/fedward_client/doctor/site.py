"""All findings about a site, in order."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fedward_client.doctor.coordinator import greeting
from fedward_client.doctor.keys import certificates, identity_files, keys, owners_of
from fedward_client.doctor.network import network
from fedward_client.doctor.records import (
    approvals,
    approved_studies,
    data_source,
    exclusions,
    ledger,
)
from fedward_client.doctor.study import signed_study, study_data, study_findings
from fedward_client.settings import SiteSettings, load_site_settings
from fedward_common import doctor as shared
from fedward_common.doctor import Examination, Finding, fail, ok
from fedward_common.errors import ConfigError
from fedward_common.processes import offline_environment

GIB: Final = 1 << 30


def examine_site(config: Path, *, study: Path | None = None) -> Examination:
    """Everything that `doctor` finds about the site of `config`, and about a signed study for it.

    A settings file that cannot be read is a finding like any other.
    """
    try:
        settings = load_site_settings(config)
    except ConfigError as error:
        found = fail("settings", str(error), f"Correct {config}")
        return Examination(subject=str(config), findings=(found,))
    return Examination(
        subject=f"site {settings.site} ({config})", findings=tuple(_all(settings, study))
    )


def _all(settings: SiteSettings, study: Path | None) -> Iterator[Finding]:
    environment, now = offline_environment(), datetime.now(UTC)
    yield ok("settings", f"{settings.source}: read, every key known")
    yield from keys(settings)
    yield from certificates(settings, now=now)
    reached = list(network(settings, identity_files(settings), environment))
    yield from reached
    if any(finding.name == "coordinator" and finding.level == "ok" for finding in reached):
        yield from greeting(settings)
    yield from _machine(settings, environment)
    yield shared.event_log("journal", settings.audit_path)
    yield ledger("ledger", settings)
    yield approvals("approvals", settings)
    yield exclusions("exclusions", settings)
    for number, entry in enumerate(settings.data, start=1):
        yield data_source(f"data.{number}", entry)
    for approved in approved_studies(settings, now=now):
        yield study_data(f"data.schema.{approved.id}", settings, approved, part="train")
    if study is not None:
        spec, finding = signed_study("study", study)
        yield finding
        if spec is not None:
            yield from study_findings(settings, spec, now=now)


def _machine(settings: SiteSettings, environment: Mapping[str, str]) -> Iterator[Finding]:
    group, owners = settings.guard.group is not None, owners_of(settings, "guard_user")
    for name, folder in (("state", settings.folders.state), ("run", settings.folders.run)):
        yield shared.private_folder(f"folder.{name}", folder, group=group, owners=owners)
    yield shared.socket_paths(
        "sockets",
        (
            settings.worker_socket,
            settings.gateway_socket,
            settings.admin_socket,
            settings.fleet_socket,
        ),
    )
    quota = settings.guard.reply_quota_bytes
    yield shared.disk("disk", settings.folders.state, fails_below=GIB // 4, warns_below=quota + GIB)
    yield shared.memory("memory", shared.read_meminfo(), fails_below=GIB, warns_below=4 * GIB)
    yield shared.telemetry("telemetry", environment)
    yield shared.program("flower-supernode", environment)
    yield from shared.versions("fedward-client", "fedward-common")
    yield computing("computing", device=settings.device)


def computing(name: str, *, device: str) -> Finding:
    """Whether torch computes on the device that the settings name."""
    try:
        # Seconds to load: only when it is asked for.
        import torch  # noqa: PLC0415
    except ImportError as error:
        return fail(name, f"torch does not load: {type(error).__name__}", "Install torch again")
    if device == "cpu":
        return ok(name, f"torch {torch.__version__} on the CPU, as configured")
    if not torch.cuda.is_available():
        return fail(
            name,
            f'device = "{device}", but torch {torch.__version__} finds no CUDA device',
            'Set device = "cpu", or install the driver and a CUDA build of torch',
        )
    return ok(name, f"torch {torch.__version__} on {torch.cuda.get_device_name()}")
