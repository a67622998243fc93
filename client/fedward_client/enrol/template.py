"""The site.toml of a new member: complete, and with nothing approved."""

import json
import re
from pathlib import Path
from typing import Final

from fedward_client.enrol.places import Places, SiteOptions
from fedward_common.trust.enrolment import Grant

NO_TABLE_YET: Final = "/path/to/patients.csv"
TEMPLATE: Final = """\
# A hospital of the federation {federation_name} (made by `fedward-client enrol`).
# Paths may be relative to the folder of this file. Unknown keys are refused.
# `fedward-client doctor` says what is still to be done.
site = {site}
federation = {federation}

[coordinator]
address = {address}
{coordinator_options}
[folders]
state = {state}
run = {run}

[keys]
tls_certificate = {tls_certificate}
tls_key = {tls_key}
ca = {ca}
node_key = {node_key}
signing_key = {signing_key}
secagg_key = {secagg_key}
{key_options}
# The table with the patients' records: a line per record, the first line names the columns.
# The user of the worker must be able to read it, and nobody else needs to.
[[data]]
kind = "csv"
path = {data}
# The column that says who is one patient: a study that takes another one is refused.
# patient_key = "patient_id"

# What this hospital allows. Anything that is not written here is refused, and no study runs before
# a person of this list has approved it: `fedward-client approver new` makes a key and prints the
# two lines to put here.
# [[approvers]]
# name = "..."
# public_key = "..."

[policy]
allowed_tasks = ["tabular-classification"]
min_noise = 1.0
max_epsilon_per_study = 1.0
max_epsilon_total = 3.0
delta = 1e-5
allow_evaluation = false
"""


def site_toml(grant: Grant, places: Places, options: SiteOptions) -> bytes:
    """The text of site.toml for a granted site."""
    coordinator = {
        "server_name": grant.server_name,
        "proxy": options.proxy,
        "proxy_auth_file": options.proxy_auth_file,
    }
    text = TEMPLATE.format(
        federation_name=re.sub(r"[^a-z0-9.-]", "", grant.federation),
        site=_value(grant.site),
        federation=_value(grant.federation),
        address=_value(grant.edge_address),
        coordinator_options=_lines(coordinator),
        state=_value(places.state),
        run=_value(places.run),
        tls_certificate=_value(places.tls_certificate),
        tls_key=_value(places.tls_key),
        ca=_value(places.ca),
        node_key=_value(places.node_key),
        signing_key=_value(places.signing_key),
        secagg_key=_value(places.secagg_key),
        key_options=_lines({"passphrase_file": options.passphrase_file}),
        data=_value(NO_TABLE_YET),
    )
    return text.encode()


def _lines(values: dict[str, str | Path | None]) -> str:
    return "".join(
        f"{name} = {_value(value.absolute() if isinstance(value, Path) else value)}\n"
        for name, value in values.items()
        if value is not None
    )


def _value(value: str | Path) -> str:
    """A text as TOML: a JSON text is one, but for DEL, which no path of ours holds."""
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
