"""What a site's processes reach of each other, of another site, of the network: tried as they are.

Each attack runs with the user, groups and network of a real process of the session's federation.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from fedward_client.isolation.flower import loopback_folder, worker_secret
from fedward_client.settings import SiteSettings, load_site_settings
from fedward_common.ids import SiteId
from fedward_common.namespace import PrivateNetwork, port_listening, private_network_refusal
from fedward_common.users import Account, become
from tests.support.live import LiveFederation

pytestmark = pytest.mark.federation

ROLES = {
    "guard": "fedward_client guard",
    "gateway": "fedward_client gateway",
    "bridge": "fedward_common.bridge",
    "supernode": "fedward_client.adapters.flower_supernode",
    "worker": "fedward_client worker",
}
PRIVATE_ROLES = ("bridge", "supernode", "worker")
OPEN = """\
import sys
mode, *paths = sys.argv[1:]
for path in paths:
    try:
        open(path, mode).close()
        print("opened", path)
    except PermissionError:
        print("refused")
"""
LIST = """\
import os, sys
for path in sys.argv[1:]:
    try:
        print("listed", os.listdir(path))
    except PermissionError:
        print("refused")
"""
CONNECT = """\
import socket, sys
for address in sys.argv[1:]:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
        print("reached", address)
    except OSError as error:
        print("refused")
"""


@pytest.fixture
def separate(live: LiveFederation) -> LiveFederation:
    if not live.federation.separate:
        pytest.skip("needs root: users of their own")
    return live


@pytest.fixture
def private(live: LiveFederation) -> LiveFederation:
    if (reason := private_network_refusal()) is not None:
        pytest.skip(f"needs private networks: {reason}")
    return live


def settings_of(live: LiveFederation, site: SiteId) -> SiteSettings:
    return load_site_settings(live.prepared.layout.sites[site].settings_file)


def processes(live: LiveFederation, site: SiteId) -> dict[str, psutil.Process]:
    """Role -> the process of a site."""
    children = psutil.Process(live.federation.pid(site)).children()
    lines = {process: " ".join(process.cmdline()) for process in children}
    return {
        role: next(process for process, line in lines.items() if words in line)
        for role, words in ROLES.items()
    }


def worker_of(live: LiveFederation, site: SiteId | None = None) -> psutil.Process:
    return processes(live, site or live.federation.sites[0])["worker"]


def status_of(process: psutil.Process) -> dict[str, str]:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def account_of(process: psutil.Process) -> Account:
    groups = tuple(int(group) for group in status_of(process)["Groups"].split())
    return Account(
        name="", uid=process.uids().effective, gid=process.gids().effective, groups=groups
    )


def in_place_of(process: psutil.Process, code: str, *arguments: object) -> list[str]:
    """The lines that `code` prints with the process's user, groups and network."""
    account, folder = account_of(process), Path(f"/proc/{process.pid}/ns")
    with ExitStack() as stack:
        network = os.open(folder / "net", os.O_RDONLY)
        stack.callback(os.close, network)
        ours = Path("/proc/self/ns/user").readlink() == (folder / "user").readlink()
        user = None if ours else os.open(folder / "user", os.O_RDONLY)
        if user is not None:
            stack.callback(os.close, user)

        def settle() -> None:
            PrivateNetwork(network=network, user=user).enter()
            if os.geteuid() == 0:
                become(account)

        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            preexec_fn=settle,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            timeout=60,
        )
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return done.stdout.splitlines()


def test_every_process_of_a_site_is_a_user_of_its_own(separate: LiveFederation) -> None:
    users = {}
    for site in separate.federation.sites:
        found = processes(separate, site)
        users[site] = {role: account_of(process).uid for role, process in found.items()}
        assert users[site].pop("bridge") == users[site]["gateway"]

    everybody = [uid for site in users.values() for uid in site.values()]
    assert len(set(everybody)) == len(everybody) == 4 * len(users)
    assert 0 not in everybody


def test_no_process_of_a_site_keeps_a_right_of_root(separate: LiveFederation) -> None:
    for site in separate.federation.sites:
        group = settings_of(separate, site).source.stat().st_gid
        for process in processes(separate, site).values():
            status = status_of(process)

            assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0
            assert status["NoNewPrivs"] == "1"
            assert status["Groups"].split() == [str(group)]
            assert len(set(status["Uid"].split())) == 1


def test_the_worker_cannot_open_ledger_journal_keys_or_approvals(
    separate: LiveFederation,
) -> None:
    site = separate.federation.sites[0]
    settings = settings_of(separate, site)
    approvals = list(settings.approvals_folder.iterdir())
    secrets = [
        settings.ledger_path,
        settings.audit_path,
        settings.keys.signing_key,
        settings.keys.node_key,
        settings.keys.tls_key,
        loopback_folder(settings) / "key.pem",
        *approvals,
    ]

    said = in_place_of(worker_of(separate, site), OPEN, "rb", *secrets)

    assert approvals
    assert all(path.is_file() for path in secrets)
    assert said == ["refused"] * len(secrets)


def test_the_worker_reads_the_patients_and_writes_neither_them_nor_the_settings(
    separate: LiveFederation,
) -> None:
    site = separate.federation.sites[0]
    settings = settings_of(separate, site)
    data, worker = settings.data[0].path, worker_of(separate, site)

    assert in_place_of(worker, OPEN, "rb", data) == [f"opened {data}"]
    assert in_place_of(worker, OPEN, "ab", data, settings.source) == ["refused"] * 2


def test_nobody_but_the_worker_reads_the_patients(separate: LiveFederation) -> None:
    site = separate.federation.sites[0]
    data = settings_of(separate, site).data[0].path

    for role, process in processes(separate, site).items():
        if role != "worker":
            assert in_place_of(process, OPEN, "rb", data) == ["refused"], role


def test_gateway_and_supernode_have_no_key_but_their_own(separate: LiveFederation) -> None:
    site = separate.federation.sites[0]
    settings, found = settings_of(separate, site), processes(separate, site)
    keys = settings.keys

    for role, others in {
        "gateway": (keys.signing_key, keys.node_key, worker_secret(settings)),
        "supernode": (keys.signing_key, keys.tls_key, worker_secret(settings)),
    }.items():
        said = in_place_of(found[role], OPEN, "rb", *others, settings.ledger_path)

        assert said == ["refused"] * 4, role


def test_the_worker_is_refused_at_the_sockets_of_people_and_gateway(
    separate: LiveFederation,
) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from fedward_client.guard.client import GuardClient\n"
        "from fedward_common.errors import PolicyRefused\n"
        "admin, gateway = (GuardClient(Path(path)) for path in sys.argv[1:])\n"
        "for ask in (lambda: admin.record(b'{}'), lambda: gateway.release('m', ['a' * 64]),\n"
        "            lambda: gateway.bundle_allowed('a' * 64)):\n"
        "    try:\n        print('answered', ask())\n"
        "    except PolicyRefused as error:\n        print(error)\n"
    )
    site = separate.federation.sites[0]
    settings, worker = settings_of(separate, site), worker_of(separate, site)

    said = in_place_of(worker, code, settings.admin_socket, settings.gateway_socket)

    assert len(said) == 3
    for line in said:
        assert line.startswith("guard: expected user")
        assert f"found {account_of(worker).uid}" in line


def test_the_worker_gets_nothing_sealed_without_a_receipt(separate: LiveFederation) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from fedward_client.guard.client import GuardClient\n"
        "from fedward_common.errors import FedwardError\n"
        "guard = GuardClient(Path(sys.argv[1]))\n"
        "try:\n    print('sealed', guard.seal('a' * 64, b'patients'))\n"
        "except FedwardError as error:\n    print('refused', error.code)\n"
    )
    site = separate.federation.sites[0]

    said = in_place_of(worker_of(separate, site), code, settings_of(separate, site).worker_socket)

    assert len(said) == 1
    assert said[0].startswith("refused ")


def test_what_the_worker_sends_to_the_gateway_itself_does_not_leave(
    private: LiveFederation,
) -> None:
    """In the worker's network the gateway's port is open; it answers the node key only."""
    code = (
        "import http.client, ssl, sys\n"
        "context = ssl.create_default_context(cafile=sys.argv[2])\n"
        "for route in ('push-messages', 'push-object', 'pull-object'):\n"
        "    connection = http.client.HTTPSConnection('127.0.0.1', int(sys.argv[1]),\n"
        "                                             context=context, timeout=20)\n"
        "    connection.request('POST', '/v1/fleet/' + route, body=b'patients')\n"
        "    print(connection.getresponse().status)\n"
    )
    site = private.federation.sites[0]
    settings = settings_of(private, site)

    said = in_place_of(
        worker_of(private, site),
        code,
        settings.ports.gateway,
        loopback_folder(settings) / "ca.pem",
    )

    assert said == ["503"] * 3


def test_no_process_of_a_site_opens_another_sites_folder(separate: LiveFederation) -> None:
    first, *others = separate.federation.sites
    targets = []
    for site in others:
        settings = settings_of(separate, site)
        targets += [
            separate.prepared.layout.sites[site].folder,
            settings.folders.state,
            settings.folders.run,
        ]
    files = [path for site in others for path in site_files(settings_of(separate, site))]

    for role, process in processes(separate, first).items():
        assert in_place_of(process, LIST, *targets) == ["refused"] * len(targets), role
        assert in_place_of(process, OPEN, "rb", *files) == ["refused"] * len(files), role


def site_files(settings: SiteSettings) -> Iterator[Path]:
    yield settings.source
    yield settings.data[0].path
    yield settings.ledger_path
    yield settings.keys.node_key


def test_flowers_ports_are_not_on_the_hosts_loopback(private: LiveFederation) -> None:
    """Control and Runtime answer whoever reaches them: on this host that is nobody (rules 15)."""
    superlink = private.federation.settings.superlink_port
    ports = [superlink]
    for site in private.federation.sites:
        settings, found = settings_of(private, site), processes(private, site)
        ports += [settings.ports.gateway, settings.ports.runtime]
        assert port_listening(found["supernode"].pid, settings.ports.runtime)
        assert port_listening(found["supernode"].pid, settings.ports.gateway)

    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    children = psutil.Process(private.federation.pid("coordinator")).children()
    (link,) = [child for child in children if "flower-superlink" in " ".join(child.cmdline())]
    assert port_listening(link.pid, superlink)


def test_superlink_and_each_site_live_in_a_network_of_their_own(private: LiveFederation) -> None:
    def network(process: psutil.Process) -> str:
        return str(Path(f"/proc/{process.pid}/ns/net").readlink())

    host, sites = str(Path("/proc/self/ns/net").readlink()), []
    for site in private.federation.sites:
        found = processes(private, site)
        inside = {network(found[role]) for role in PRIVATE_ROLES}
        assert len(inside) == 1
        assert {network(found[role]) for role in ("guard", "gateway")} == {host}
        sites += inside
    children = psutil.Process(private.federation.pid("coordinator")).children(recursive=True)
    flowers = [
        child
        for child in children
        if child.status() != psutil.STATUS_ZOMBIE and "flower-super" in " ".join(child.cmdline())
    ]
    coordinator = {network(child) for child in flowers}

    assert len(flowers) >= 2
    assert len(coordinator) == 1
    assert len({host, *coordinator, *sites}) == 2 + len(sites)


def test_the_worker_reaches_no_address_of_this_host_or_beyond(private: LiveFederation) -> None:
    addresses = {
        address.address
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family is socket.AF_INET
    }
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        targets = [f"{address}:{port}" for address in sorted(addresses)]
        guard = processes(private, private.federation.sites[0])["guard"]

        outside = in_place_of(guard, CONNECT, *targets)
        inside = in_place_of(worker_of(private), CONNECT, *targets, "198.51.100.7:443")

    assert outside == [f"reached {target}" for target in targets]
    assert inside == ["refused"] * (len(targets) + 1)


def test_the_worker_cannot_go_back_to_the_hosts_network(private: LiveFederation) -> None:
    site = private.federation.sites[0]
    guard = processes(private, site)["guard"].pid
    code = (
        "import ctypes, os, sys\n"
        "try:\n    there = os.open(f'/proc/{sys.argv[1]}/ns/net', os.O_RDONLY)\n"
        "except PermissionError:\n    print('refused')\n    sys.exit()\n"
        "print('refused' if ctypes.CDLL(None).setns(there, 0x40000000) else 'entered')\n"
    )
    worker = worker_of(private, site)
    if account_of(worker).uid == 0:
        pytest.skip("needs users of their own: root goes where it likes")

    assert in_place_of(worker, code, guard) == ["refused"]


def test_only_the_coordinators_user_gets_through_to_superlink(
    separate: LiveFederation,
) -> None:
    code = (
        "import socket, sys\n"
        "connection = socket.socket(socket.AF_UNIX)\n"
        "try:\n    connection.connect(sys.argv[1])\n    print('reached')\n"
        "except PermissionError:\n    print('refused')\n"
    )
    path = separate.federation.settings.superlink_socket

    for role, process in processes(separate, separate.federation.sites[0]).items():
        assert in_place_of(process, code, path) == ["refused"], role
    assert path.stat().st_mode & 0o777 == 0o600
