"""Enrolment under SIGKILL at file operations all along the way; the next run finishes it."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, os, shutil, signal, sys
from datetime import UTC, datetime
from pathlib import Path

from fedward_client.adapters.key_files import read_tls_key
from fedward_client.enrol import Places, SiteOptions, install_grant, write_request
from fedward_client.enrol.keys import stored_request
from fedward_client.settings import load_site_settings
from fedward_common.ids import SiteId
from fedward_common.trust.certificates import issue_site
from fedward_common.trust.chains import spki_sha256, request_key_sha256
from fedward_common.trust.enrolment import SITE_GRANT, Grant, Invite
from fedward_common.trust.signing import SigningKey
from fedward_common.trust.statements import Statement
from tests.support.pki import Authority

folder, options, authority, operator = (
    Path(sys.argv[1]), SiteOptions(), Authority(), SigningKey.generate()
)
config, out = folder / "site" / "site.toml", folder / "request.json"
silent = lambda line: None

def places():
    return Places.of(config, options)

def killed(number, step):
    child = os.fork()
    if child == 0:
        seen = [0]
        def kill(event, arguments):
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod"):
                seen[0] += 1
                if seen[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(kill)
        step()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return not os.WIFEXITED(status)

def grant_for(request):
    facts = {"request_sha256": str(request.sha256), "site": "alpha"}
    said = Statement.sign(
        SITE_GRANT, facts, person="A. One", key=operator, now=datetime.now(UTC)
    )
    chain = issue_site(authority.issuing, request.tls_csr_pem.encode(), federation="north",
                       site=SiteId("alpha"), now=datetime.now(UTC))
    return Grant(request_sha256=request.sha256, site="alpha", federation="north",
                 chain_pem=chain.decode(), root_pem=authority.root.certificate_pem.decode(),
                 edge_address="127.0.0.1:1", server_name=None, statements=(said,)).canonical

invite = Invite.new(address="127.0.0.1:1", server_name=None, federation="north",
                    site=SiteId("alpha"), root_sha256=spki_sha256(authority.root.certificate_pem))
found, number = [], -2
while True:
    number += 3
    shutil.rmtree(folder / "site", ignore_errors=True)
    first = killed(number, lambda: write_request(invite, places(), options, out=out, say=silent))
    early = config.exists()
    request = write_request(invite, places(), options, out=out, say=silent)
    keys = {p.name: p.read_bytes() for p in (folder / "site").rglob("*.pem")}
    grant = folder / "grant.json"
    grant.write_bytes(grant_for(request))
    second = killed(number, lambda: install_grant(grant, places(), options))
    if config.exists():
        load_site_settings(config)
    again = write_request(invite, places(), options, out=out, say=silent) if not config.exists() \\
        and not places().grant.exists() else request
    install_grant(grant, places(), options)
    settings = load_site_settings(config)
    whole = (
        not early
        and again == request
        and stored_request(places()) == request
        and spki_sha256(settings.keys.tls_certificate.read_bytes())
        == request_key_sha256(request.tls_csr_pem.encode())
        and all(p.read_bytes() == keys[p.name] for p in (folder / "site").rglob("*.pem")
                if p.name in keys)
        and b"PRIVATE KEY" in read_tls_key(settings.keys.tls_key)
    )
    found.append(whole)
    if not first and not second:
        break
print(json.dumps(found))
"""


def test_killed_at_any_moment_the_next_run_goes_on_with_the_same_keys(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=Path(__file__).parents[3],
    )

    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert len(found) > 15
    assert all(found)
