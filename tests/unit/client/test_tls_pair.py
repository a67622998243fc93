"""The site's TLS pair: key and certificate change together, whenever the process is killed."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from fedward_client.adapters.key_files import is_encrypted
from fedward_client.adapters.tls_pair import SiteIdentity, TlsPair
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.trust.authority import belongs_together
from fedward_common.trust.certificates import issue_site
from tests.support.pki import Authority, now, write_identity

ALPHA = SiteId("alpha")
KILLED = """
import json, os, signal, sys
from pathlib import Path
from fedward_client.adapters.tls_pair import TlsPair

folder, chain = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
pair = TlsPair(certificate=folder / "tls.pem", key=folder / "tls.key")
before = {name: (folder / name).read_bytes() for name in ("tls.pem", "tls.key", "tls.key.next")}
found = []
for number in range(1, 200):
    for path in folder.iterdir():
        path.unlink()
    for name, data in before.items():
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
    child = os.fork()
    if child == 0:
        seen = [0]
        def kill(event, arguments):
            if event in ("open", "os.rename", "os.remove", "os.chmod"):
                seen[0] += 1
                if seen[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(kill)
        pair.switch(chain)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    pair.settle()
    identity = pair.identity()
    new = identity.certificate_pem == chain
    kept = before["tls.key.next"] if new else before["tls.key"]
    found.append([new, identity.key_pem == kept, sorted(p.name for p in folder.iterdir()
                  if not p.name.startswith("."))])
    if os.WIFEXITED(status):
        break
print(json.dumps(found))
"""


@pytest.fixture
def authority() -> Authority:
    return Authority()


def make_pair(folder: Path, authority: Authority, passphrase: bytes | None = None) -> TlsPair:
    write_identity(folder, "tls", authority.site_identity(ALPHA), authority.root)
    return TlsPair(certificate=folder / "tls.pem", key=folder / "tls.key", passphrase=passphrase)


def signed(authority: Authority, request_pem: bytes) -> bytes:
    return issue_site(
        authority.issuing,
        request_pem,
        federation=authority.federation,
        site=ALPHA,
        now=now() + timedelta(hours=1),
    )


def test_a_new_pair_takes_the_place_of_the_old_one(tmp_path: Path, authority: Authority) -> None:
    pair = make_pair(tmp_path, authority)
    before = pair.identity()
    chain = signed(authority, pair.prepare(ALPHA))

    pair.switch(chain)

    after = pair.identity()
    assert after.certificate_pem == chain
    assert after.key_pem != before.key_pem
    assert belongs_together(after, authority.issuing.certificate_pem)
    assert pair.key.stat().st_mode & 0o777 == 0o600
    assert not pair.next_key.exists()
    assert not pair.next_certificate.exists()


def test_killed_at_any_moment_of_the_switch_a_whole_pair_is_left(
    tmp_path: Path, authority: Authority
) -> None:
    """SIGKILL before each file operation in turn; the next start settles on old or new, whole."""
    folder = tmp_path / "keys"
    chain = tmp_path / "chain.pem"
    chain.write_bytes(signed(authority, make_pair(folder, authority).prepare(ALPHA)))
    (folder / "root.pem").unlink()

    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(chain)],
        capture_output=True,
        text=True,
        check=True,
    )

    found = json.loads(ran.stdout)
    assert len(found) > 8
    assert all(fits for _, fits, _ in found)
    assert [new for new, _, _ in found] == sorted(new for new, _, _ in found)
    assert {new for new, _, _ in found} == {False, True}
    for new, _, names in found:
        assert names == (["tls.key", "tls.pem"] if new else ["tls.key", "tls.key.next", "tls.pem"])


def test_a_renewal_that_came_to_nothing_asks_again_for_the_same_key(
    tmp_path: Path, authority: Authority
) -> None:
    """The coordinator may have signed it already, and its answer was lost."""
    pair = make_pair(tmp_path, authority)
    first = signed(authority, pair.prepare(ALPHA))
    pair.prepare(ALPHA)

    pair.switch(first)

    assert pair.identity().certificate_pem == first


def test_a_certificate_of_another_key_changes_nothing(tmp_path: Path, authority: Authority) -> None:
    pair = make_pair(tmp_path, authority)
    before = pair.identity()
    pair.prepare(ALPHA)

    with pytest.raises(ConfigError, match="another's"):
        pair.switch(authority.site_identity(ALPHA).certificate_pem)
    assert pair.identity() == before
    assert not pair.next_certificate.exists()


def test_a_waiting_certificate_that_fits_no_key_is_put_aside(
    tmp_path: Path, authority: Authority
) -> None:
    pair = make_pair(tmp_path, authority)
    before = pair.identity()
    pair.next_certificate.write_bytes(authority.site_identity(ALPHA).certificate_pem)

    pair.settle()

    assert pair.identity() == before
    assert not pair.next_certificate.exists()


def test_under_a_passphrase_the_new_key_is_encrypted_as_well(
    tmp_path: Path, authority: Authority
) -> None:
    pair = make_pair(tmp_path, authority, b"a passphrase of some length")
    pair.switch(signed(authority, pair.prepare(ALPHA)))

    assert is_encrypted(pair.key)
    assert belongs_together(pair.identity(), authority.issuing.certificate_pem)
    assert "passphrase of" not in repr(pair)


def test_the_identity_needs_a_private_key_and_a_root(tmp_path: Path, authority: Authority) -> None:
    pair = make_pair(tmp_path, authority)
    source = SiteIdentity(pair=pair, ca=tmp_path / "root.pem")
    assert source.read()[1] == authority.root.certificate_pem
    pair.key.chmod(0o640)

    with pytest.raises(ConfigError, match="0600"):
        source.read()
    with pytest.raises(ConfigError, match="No such file"):
        SiteIdentity(pair=pair, ca=tmp_path / "none.pem").read()
