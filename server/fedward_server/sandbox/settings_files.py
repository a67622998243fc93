"""The configuration files of a sandbox, as an operator and site engineers would write them."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fedward_common.privacy.collusion import collusion_facts
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.evaluation import EvaluationRelease
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.imaging import Pictures
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.notes import NotesData
from fedward_common.study.registry import DataSpec
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.statistics import ReleasesOnly
from fedward_common.trust.private_files import write_atomically, write_private
from fedward_common.trust.statements import Statement
from fedward_server.sandbox.clinical import patients_beside
from fedward_server.sandbox.datasets_images import IMAGES_TABLE
from fedward_server.sandbox.folders import data_file, modality_folders, own_settings
from fedward_server.sandbox.genotypes import PEOPLE
from fedward_server.sandbox.layout import FEDERATION, Layout, SiteFolder
from fedward_server.sandbox.notes import VOCABULARY
from fedward_server.sandbox.rows import row_files

STEWARD: Final = "Data steward"
COORDINATOR: Final = """\
# The coordinator of a Fedward federation (made by `fedward-server sandbox`).
federation = {federation}
listen = {listen}
state = "state"
run = {run}
superlink_port = {superlink_port}

[tls]
certificate = "keys/tls.pem"
key = "keys/tls.key"
ca = "keys/ca.pem"
"""

SITE: Final = """\
# A hospital of a Fedward federation (made by `fedward-server sandbox`).
site = {site}
federation = {federation}
{absent}
[coordinator]
address = {address}
server_name = "localhost"

[folders]
state = "state"
run = {run}

[keys]
tls_certificate = "keys/tls.pem"
tls_key = "keys/tls.key"
ca = "keys/ca.pem"
node_key = "keys/node.key"
signing_key = "keys/signing.pem"

{data}
[ports]
gateway = {gateway}
runtime = {runtime}

# What this hospital allows. Anything that is not written here is refused.
[policy]
allowed_tasks = [{task}]
min_noise = {min_noise}
max_epsilon_per_study = {max_epsilon}
max_epsilon_total = {max_epsilon}
delta = {delta}
{secure}allow_evaluation = true
max_evaluations = {evaluations}
allow_statistics = {statistics}
approved_bundles = [{bundle}]

# Who may approve studies, pause and resume. What they said is in state/approvals.
[[approvers]]
name = {approver_name}
public_key = {approver_key}
"""


def write_coordinator(layout: Layout) -> None:
    """Writes coordinator.toml."""
    text = _filled(
        COORDINATOR,
        federation=FEDERATION,
        listen=f"127.0.0.1:{layout.ports[0]}",
        run=str(layout.run / "coordinator"),
        superlink_port=layout.ports[1],
    )
    write_atomically(layout.settings_file, text.encode(), mode=0o600)


def write_sites(layout: Layout, *, study: StudySpec, bundle_sha256: str) -> None:
    """Writes each site's site.toml, with a policy that allows this one study and no more, and the
    study's approval by the site's data steward.
    """
    if not isinstance(study.dp, DpSgd | ReleasesOnly):
        raise TypeError(f"sandbox: expected a dp-sgd or releases-only study, found {study.dp.kind}")
    noise = study.dp.noise_multiplier if isinstance(study.dp, DpSgd) else 1.0
    policy: dict[str, Any] = {
        "task": study.task.kind,
        # A limit, not the study's own number: a hair below what this study declares.
        "min_noise": round(noise * 0.99, 4),
        "max_epsilon": study.dp.epsilon,
        "delta": study.dp.delta,
        "statistics": isinstance(study.dp, ReleasesOnly),
        "evaluations": max(
            (one.times for one in study.releases if isinstance(one, EvaluationRelease)), default=1
        ),
        "bundle": bundle_sha256,
        "secure": _secure_rules(study),
    }
    for number, site in enumerate(layout.sites.values()):
        write_site(layout, site, number=number, policy=policy, own=_whole(study, site))
        write_approval(site, study, now=datetime.now(UTC))


def _secure_rules(study: StudySpec) -> dict[str, Any]:
    """The rules that a study with secure sums needs, and no more."""
    rules: dict[str, Any] = {}
    if study.secure_sum:
        rules["require_secure_sum"] = True
        rules["allow_semi_honest"] = study.thresholds.mode == "semi-honest"
    facts = collusion_facts(study)
    if facts is not None:
        # As for epsilon: a limit, a hair above what this study's own share alone gives.
        colluding = facts["epsilon_if_all_others_collude"]
        rules["max_epsilon_if_all_others_collude"] = math.ceil(colluding * 100 + 1) / 100
    return rules


def _whole(study: StudySpec, site: SiteFolder) -> dict[str, Any]:
    """The site's [[data]], one for each modality that it has, and what it says it does not have."""
    if not isinstance(study.data, MultimodalData):
        return {"data": [_entry(study.data, site.data_file)]}
    own = own_settings(site.data_file)
    if own is not None:
        return own
    folders = modality_folders(site.data_file)
    parts = study.data.parts
    return {
        "data": [
            {**_entry(part, data_file(folders[name])), "modality": name}
            for name, part in parts.items()
            if name in folders
        ],
        "absent_modalities": sorted(set(parts) - set(folders)),
    }


def _entry(data: DataSpec, file: Path) -> dict[str, Any]:
    """The keys of a [[data]]; images say who is one patient."""
    path = str(file.absolute())
    if isinstance(data, ClinicalData):
        patients = str(patients_beside(file).absolute())
        return {"kind": "events", "patients": patients, "events": path}
    if isinstance(data, Genotypes):
        kin = {} if data.family_key is None else {"family_key": data.family_key}
        people = str(file.with_name(PEOPLE).absolute())
        whose = {"build": data.build, "patient_key": data.patient_key, **kin}
        return {"kind": "genotypes", "path": path, "people": people, **whose}
    if not isinstance(data, Pictures | NotesData | LabelledRows):
        return {"kind": "csv", "path": path}
    owner = {"no_patient_key": True} if data.no_patient_key else {"patient_key": data.patient_key}
    if isinstance(data, Pictures):
        whole = str(file.parent.absolute()) if file.name == IMAGES_TABLE else path
        return {"kind": "images", "path": whole, **owner}
    if isinstance(data, LabelledRows):
        return {"kind": data.what, "path": path, **owner, **row_files(data, file)}
    vocabulary = file.with_name(VOCABULARY).absolute()
    beside = {"vocabulary": str(vocabulary)} if vocabulary.is_file() else {}
    return {"kind": "notes", "path": path, **owner, **beside}


def write_approval(site: SiteFolder, study: StudySpec, *, now: datetime) -> None:
    """Writes the approval of a study by the site's data steward: the guard finds it at its start.

    While the guard runs, `fedward-client studies approve` is the way.
    """
    approval = Statement.sign(
        "study-approval",
        {"study": study.digest, "study_id": study.id, "site": site.site},
        person=STEWARD,
        key=site.approver,
        now=now,
    )
    folder = site.folder / "state" / "approvals"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.parent.chmod(0o700)
    write_private(folder / f"{approval.sha256}.json", approval.canonical)


def write_site(
    layout: Layout,
    site: SiteFolder,
    *,
    number: int,
    policy: Mapping[str, Any],
    own: Mapping[str, Any],
) -> None:
    """Writes one site.toml; `policy` holds the values of the [policy] table, `own` the [[data]]
    and, where the site does not have all modalities, which.
    """
    away = own.get("absent_modalities")
    text = _filled(
        SITE,
        site=site.site,
        federation=FEDERATION,
        address=f"127.0.0.1:{layout.ports[0]}",
        run=str(layout.run / site.site),
        data=[dict(one) for one in own["data"]],
        absent={"absent_modalities": away} if away else {},
        gateway=layout.ports[2 + 2 * number],
        runtime=layout.ports[3 + 2 * number],
        approver_name=STEWARD,
        approver_key=site.approver.public_hex,
        **policy,
    )
    write_atomically(site.settings_file, text.encode(), mode=0o600)


def _filled(template: str, **values: Any) -> str:
    """The template with each value as TOML: JSON text and JSON numbers are TOML as well.

    A table becomes lines of keys, a list of tables one [[data]] after another.
    """

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "".join(f"{key} = {_inline(one)}\n" for key, one in value.items())
        if isinstance(value, list):
            return "\n".join(f"[[data]]\n{text(one)}" for one in value)
        return json.dumps(value)

    return template.format(**{name: text(value) for name, value in values.items()})


def _inline(value: Any) -> str:
    """A value as TOML in one line; JSON but for tables."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_inline(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(one) for one in value) + "]"
    return json.dumps(value)
