"""A site's folders and keys, each with its owner, and which users [guard] may name."""

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedward_client.adapters.key_files import write_node_key
from fedward_client.isolation.accounts import (
    SiteAccounts,
    node_public_key,
    public_node_key_file,
)
from fedward_client.isolation.arrange import arrange
from fedward_client.isolation.flower import (
    loopback_folder,
    node_home,
    node_secret,
    supernode_command,
    worker_environment,
    worker_home,
    worker_secret,
)
from fedward_client.settings import SiteSettings
from fedward_common.errors import ConfigError, StartError
from fedward_common.namespace import port_listening
from fedward_common.trust.certificates import NodeKey
from fedward_common.users import Account, acting_as
from fedward_server.sandbox.layout import free_ports
from tests.support.guard_site import make_site

GROUP, GUARD, GATEWAY, NODE, WORKER = 54320, 54321, 54322, 54323, 54324
NAMED = {
    "group": f"#{GROUP}",
    "guard_user": f"#{GUARD}",
    "gateway_user": f"#{GATEWAY}",
    "node_user": f"#{NODE}",
    "worker_user": f"#{WORKER}",
}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

Make = Callable[..., SiteSettings]


@pytest.fixture
def make() -> Iterator[Make]:
    """A hospital in a folder that other users may pass through, which pytest's own are not."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o711)

    def site(guard: dict[str, str] = NAMED, **top: Any) -> SiteSettings:
        made = make_site(root / "site", top={"guard": guard, **top})
        (root / "site").chmod(0o700)
        made.settings.keys.tls_key.parent.mkdir(parents=True, exist_ok=True)
        write_node_key(made.settings.keys.node_key, NodeKey.generate())
        for path, mode in (
            (made.settings.keys.tls_key, 0o600),
            (made.settings.keys.tls_certificate, 0o600),
            (made.settings.keys.ca, 0o600),
            (made.settings.data[0].path, 0o644),
            (made.settings.source, 0o600),
        ):
            with path.open("a") as file:
                file.write("# here\n")
            path.chmod(mode)
        return made.settings

    yield site
    shutil.rmtree(root)


def owner(path: Path) -> int:
    return path.stat().st_uid


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def readers(path: Path) -> set[int]:
    """Which of the site's users can open the file."""
    found = set()
    for uid in (GUARD, GATEWAY, NODE, WORKER):
        with acting_as(Account(name=f"#{uid}", uid=uid, gid=uid, groups=(GROUP,))):
            try:
                path.open("rb").close()
            except PermissionError:
                continue
        found.add(uid)
    return found


def test_without_names_the_site_has_one_user(make: Make) -> None:
    settings = make(guard={})

    accounts = SiteAccounts.of(settings)
    arrange(settings, accounts)

    assert not accounts.separate
    for folder in (node_home(settings), worker_home(settings), settings.folders.run):
        assert mode(folder) == 0o700
    assert node_secret(settings).read_bytes() == worker_secret(settings).read_bytes()


@as_root
def test_each_user_can_open_its_own_secrets_and_nobody_elses(make: Make) -> None:
    settings = make()
    ledger = settings.ledger_path
    ledger.parent.mkdir(mode=0o700)
    ledger.write_text("from before")  # a site that had one user until now
    ledger.chmod(0o600)

    arrange(settings, SiteAccounts.of(settings))

    assert readers(settings.keys.signing_key) == {GUARD}
    assert readers(ledger) == {GUARD}
    assert readers(settings.keys.tls_key) == {GATEWAY}
    assert readers(loopback_folder(settings) / "key.pem") == {GATEWAY}
    assert readers(settings.keys.node_key) == {NODE}
    assert readers(node_secret(settings)) == {NODE}
    assert readers(worker_secret(settings)) == {WORKER}


@as_root
def test_everybody_reads_what_is_public_to_the_site_and_no_other_user_does(make: Make) -> None:
    settings = make()

    arrange(settings, SiteAccounts.of(settings))

    everybody = {GUARD, GATEWAY, NODE, WORKER}
    assert readers(settings.source) == everybody
    assert readers(loopback_folder(settings) / "ca.pem") == everybody
    assert readers(settings.keys.ca) == everybody
    assert readers(public_node_key_file(settings)) == everybody
    assert mode(settings.source) == 0o640
    for folder in (settings.source.parent, settings.folders.state, settings.folders.run):
        assert mode(folder) == 0o710, folder
        assert folder.stat().st_gid == GROUP


@as_root
def test_the_gateway_takes_the_public_half_of_the_node_key(make: Make) -> None:
    settings = make()
    expected = node_public_key(settings)

    arrange(settings, SiteAccounts.of(settings))

    with acting_as(Account(name="gateway", uid=GATEWAY, gid=GATEWAY, groups=(GROUP,))):
        assert node_public_key(settings) == expected


@as_root
def test_it_is_safe_to_repeat_and_keeps_the_secret(make: Make) -> None:
    settings = make()
    accounts = SiteAccounts.of(settings)
    arrange(settings, accounts)
    secret = node_secret(settings).read_bytes()

    arrange(settings, accounts)

    assert node_secret(settings).read_bytes() == secret == worker_secret(settings).read_bytes()
    assert owner(settings.folders.state) == GUARD


@as_root
def test_keys_that_enrolment_put_into_the_state_folder_get_their_owners(make: Make) -> None:
    """A TLS folder of its own is the gateway's: it writes the renewed key there."""
    keys = {
        "tls_certificate": "state/keys/tls/tls.pem",
        "tls_key": "state/keys/tls/tls.key",
        "ca": "state/keys/ca.pem",
        "node_key": "state/keys/node.key",
        "signing_key": "state/keys/signing.pem",
    }
    settings = make(keys=keys)
    folder = settings.folders.state / "keys"
    settings.keys.signing_key.write_text("here")
    settings.keys.signing_key.chmod(0o600)

    arrange(settings, SiteAccounts.of(settings))

    assert owner(folder) == 0
    assert owner(folder / "tls") == GATEWAY
    assert readers(settings.keys.tls_key) == {GATEWAY}
    assert readers(settings.keys.signing_key) == {GUARD}
    with acting_as(Account(name="gateway", uid=GATEWAY, gid=GATEWAY, groups=(GROUP,))):
        Path(folder, "tls", "tls.key.next").write_text("renewed")


@as_root
def test_what_belongs_to_somebody_else_is_refused(make: Make) -> None:
    settings = make()
    os.chown(settings.keys.signing_key, WORKER, WORKER)

    with pytest.raises(StartError, match=rf"belong to #{GUARD} .*, found user {WORKER}"):
        arrange(settings, SiteAccounts.of(settings))


@as_root
def test_a_link_that_the_guard_put_there_is_not_followed(make: Make) -> None:
    """Root gives folders away inside a folder of the guard's: it could point them anywhere."""
    settings = make()
    accounts = SiteAccounts.of(settings)
    arrange(settings, accounts)
    target = settings.source.parent / "of-root"
    target.mkdir(mode=0o700)
    home = node_home(settings)
    shutil.rmtree(home)
    home.symlink_to(target)

    with pytest.raises(StartError, match="without a link"):
        arrange(settings, accounts)
    assert owner(target) == 0


@as_root
def test_a_file_of_roots_that_was_linked_to_a_keys_name_is_not_given_away(make: Make) -> None:
    """Where the kernel lets anybody name any file again (fs.protected_hardlinks = 0)."""
    settings = make()
    arrange(settings, SiteAccounts.of(settings))
    of_root = settings.source.parent.parent / "shadow"
    of_root.write_text("secret")
    settings.keys.tls_key.unlink()
    settings.keys.tls_key.hardlink_to(of_root)

    with pytest.raises(StartError, match="no other name"):
        arrange(settings, SiteAccounts.of(settings))

    assert owner(of_root) == 0


@as_root
@pytest.mark.parametrize("put", ["pipe", "device"])
def test_a_pipe_or_an_endless_file_that_the_worker_left_does_not_hold_root_at_the_start(
    make: Make, put: str
) -> None:
    settings = make()
    accounts = SiteAccounts.of(settings)
    arrange(settings, accounts)
    secret = worker_secret(settings)
    secret.unlink()
    if put == "pipe":
        os.mkfifo(secret)
        os.chown(secret, WORKER, WORKER)
    else:
        secret.symlink_to("/dev/zero")

    arrange(settings, accounts)

    assert secret.is_file()
    assert not secret.is_symlink()
    assert secret.read_bytes() == node_secret(settings).read_bytes()


@as_root
def test_data_that_the_worker_cannot_read_are_named_at_the_start(make: Make) -> None:
    settings = make()
    settings.data[0].path.chmod(0o600)

    with pytest.raises(StartError, match=rf"the worker \(#{WORKER}\) may read it"):
        arrange(settings, SiteAccounts.of(settings))


@as_root
def test_the_list_of_patients_who_object_is_the_guards_and_the_workers(make: Make) -> None:
    settings = make(exclusions="exclusions.csv")
    path = settings.source.parent / "exclusions.csv"
    path.write_text("patient_id\n")
    path.chmod(0o600)

    arrange(settings, SiteAccounts.of(settings))

    assert readers(path) == {GUARD, WORKER}


@as_root
def test_a_passphrase_file_is_not_shared_between_users(make: Make) -> None:
    settings = make()
    passphrase = settings.source.parent / "passphrase"
    keys = settings.keys.model_copy(update={"passphrase_file": passphrase})

    with pytest.raises(ConfigError, match="several users"):
        arrange(settings.model_copy(update={"keys": keys}), SiteAccounts.of(settings))


@as_root
@pytest.mark.parametrize("key", [key for key in NAMED if key != "group"])
def test_all_users_are_named_or_none(make: Make, key: str) -> None:
    settings = make(guard={name: user for name, user in NAMED.items() if name != key})

    with pytest.raises(ConfigError, match=f"found no {key}"):
        SiteAccounts.of(settings)


@as_root
@pytest.mark.parametrize("user", [f"#{GATEWAY}", "root"])
def test_two_of_the_users_cannot_be_one_and_none_is_root(make: Make, user: str) -> None:
    settings = make(guard=NAMED | {"worker_user": user})

    with pytest.raises(ConfigError, match="four different users"):
        SiteAccounts.of(settings)


@as_root
def test_a_user_that_cannot_become_the_others_does_not_start_them(make: Make) -> None:
    settings = make()

    with (
        acting_as(Account(name="guard", uid=GUARD, gid=GUARD, groups=(GROUP,))),
        pytest.raises(ConfigError, match=rf"expected root .*, found user {GUARD}"),
    ):
        SiteAccounts.of(settings)


def test_flower_gets_loopback_addresses_and_no_secret_on_its_command_line(make: Make) -> None:
    settings = make(guard={})

    command = supernode_command(settings, node_key=settings.keys.node_key)
    environment = worker_environment(settings)

    assert f"127.0.0.1:{settings.ports.gateway}" in command
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--isolation") + 1] == "process"
    assert environment["FLWR_HOME"] == str(worker_home(settings))
    assert environment["FEDWARD_SITE_SETTINGS"] == str(settings.source)
    assert int(environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) > 16 * 360  # of DenseNet121


@pytest.mark.federation
def test_supernode_starts_alone_and_reads_an_encrypted_node_key_from_memory(
    tmp_path: Path,
) -> None:
    gateway, runtime = free_ports(2)
    site = make_site(
        tmp_path / "site",
        top={
            "ports": {"gateway": gateway, "runtime": runtime},
            "keys": KEYS | {"passphrase_file": "passphrase"},
        },
    )
    settings = site.settings
    passphrase = settings.source.with_name("passphrase")
    passphrase.write_text("x" * 30)
    passphrase.chmod(0o600)
    write_node_key(settings.keys.node_key, NodeKey.generate(), passphrase=b"x" * 30)
    arrange(settings, SiteAccounts.of(settings))
    command = (sys.executable, "-m", "fedward_client", "supernode", "--config", settings.source)

    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        limit = time.monotonic() + 60
        while not port_listening(process.pid, runtime) and time.monotonic() < limit:
            time.sleep(0.05)
        started = port_listening(process.pid, runtime)
        words = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
    finally:
        process.terminate()
        process.wait(20)

    assert started, (tmp_path / "log").read_text()
    assert words[1:3] == ["-m", "fedward_client.adapters.flower_supernode"]
    assert re.fullmatch(r"/proc/self/fd/\d+", words[words.index(KEY_OPTION) + 1])
    assert not list(settings.folders.run.rglob("node.key"))


KEY_OPTION = "--auth-supernode-private-key"
KEYS = {
    "tls_certificate": "keys/tls.crt",
    "tls_key": "keys/tls.key",
    "ca": "keys/ca.crt",
    "node_key": "keys/node.pem",
    "signing_key": "keys/signing.pem",
}
