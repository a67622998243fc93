"""The configuration files of a sandbox, as an operator and site engineers would write them."""

import json
from collections.abc import Mapping
from typing import Any, Final

from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.trust.private_files import write_atomically
from fedward_server.sandbox.layout import FEDERATION, Layout, SiteFolder

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

[[data]]
kind = "csv"
path = {data}

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
allow_evaluation = true
approved_studies = [{study}]
approved_bundles = [{bundle}]
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
    """Writes each site's site.toml, with a policy that allows this one study and no more."""
    if not isinstance(study.dp, DpSgd):
        raise TypeError(f"sandbox: expected a dp-sgd study, found {study.dp.kind}")
    policy: dict[str, Any] = {
        "task": study.task.kind,
        # A limit, not the study's own number: a hair below what this study declares.
        "min_noise": round(study.dp.noise_multiplier * 0.99, 4),
        "max_epsilon": study.dp.epsilon,
        "delta": study.dp.delta,
        "study": study.digest,
        "bundle": bundle_sha256,
    }
    for number, site in enumerate(layout.sites.values()):
        write_site(layout, site, number=number, policy=policy)


def write_site(layout: Layout, site: SiteFolder, *, number: int, policy: Mapping[str, Any]) -> None:
    """Writes one site.toml; `policy` holds the values of the [policy] table."""
    text = _filled(
        SITE,
        site=site.site,
        federation=FEDERATION,
        address=f"127.0.0.1:{layout.ports[0]}",
        run=str(layout.run / site.site),
        data=str(site.data_file.absolute()),
        gateway=layout.ports[2 + 2 * number],
        runtime=layout.ports[3 + 2 * number],
        **policy,
    )
    write_atomically(site.settings_file, text.encode(), mode=0o600)


def _filled(template: str, **values: Any) -> str:
    """The template with each value as TOML: JSON text and JSON numbers are TOML as well."""
    return template.format(**{name: json.dumps(value) for name, value in values.items()})
