"""The offline bundle: what it holds, who may have made it, and what installing it leaves behind."""

import base64
import hashlib
import json
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from deploy.bundle.build import ROLES, ROOT, build_bundle, build_own_wheels
from deploy.bundle.verify import DOMAIN, SIGNATURE, SUMS, Refused, verify_bundle, verify_signature
from deploy.bundle.wheels import BuildError, Wheelhouse, read_constraints
from fedward_client.settings import load_site_settings
from fedward_common.trust.signing import SigningKey
from fedward_server.settings import load_coordinator_settings

WHEELHOUSE = Path(sys.prefix) / "wheelhouse"
PYTHON = getattr(sys, "_base_executable", sys.executable)
OFFLINE = ("unshare", "-rn")
PROGRAM = "import sys\ndef main():\n    print('{version}', sys.prefix)\n"
KEY = SigningKey.generate()


def tiny_wheel(folder: Path, *, version: str = "1.0.0") -> Path:
    """A `fedward-client` that requires nothing and prints its version."""
    path = folder / f"fedward_client-{version}-py3-none-any.whl"
    info = f"fedward_client-{version}.dist-info"
    files = {
        "fedward_client.py": PROGRAM.format(version=version),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: fedward-client\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nfedward-client = fedward_client:main\n",
    }
    rows = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
        rows.append(f"{name},sha256={digest.rstrip('=')},{len(text)}\n")
    record = f"{info}/RECORD"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, record: "".join([*rows, f"{record},,\n"])}.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return path


def tiny_bundle(folder: Path, *, version: str = "1.0.0", key: SigningKey = KEY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tiny_wheel(folder, version=version)
    wheelhouse = Wheelhouse([folder, WHEELHOUSE], {})
    return build_bundle(ROLES["client"], wheelhouse=wheelhouse, out=folder / "out", key=key)


def run(script: Path, *options: str, root: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script of the bundle without root, users and any network."""
    return subprocess.run(
        [*OFFLINE, str(script), "--root", str(root), "--no-users", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def install(
    bundle: Path, root: Path, *options: str, key: SigningKey | None = KEY
) -> subprocess.CompletedProcess[str]:
    named = () if key is None else ("--key", key.public_hex)
    return run(bundle / "install.sh", "--python", PYTHON, *named, *options, root=root)


def links(root: Path) -> list[str]:
    """The current version and the one before."""
    return [str((root / "opt/fedward" / name).readlink()) for name in ("current", "previous")]


def snapshot(folder: Path) -> dict[str, str]:
    """Path -> what is there, of everything below `folder`."""
    return {
        path.relative_to(folder).as_posix(): (
            f"-> {path.readlink()}"
            if path.is_symlink()
            else hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else oct(path.stat().st_mode)
        )
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    allowed = shutil.which("unshare") and subprocess.run([*OFFLINE, "true"], check=False)
    if not allowed or allowed.returncode != 0:
        pytest.skip("this machine allows no network namespaces")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("two"), version="1.1.0")


@pytest.fixture
def bundle(one: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(one, tmp_path / "bundle"))


# The signature


def test_the_verifier_knows_the_vectors_of_rfc_8032() -> None:
    """Section 7.1, tests 1 and 3."""
    for public, message, signature in (
        (
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bac"
            "c61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290"
            "ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ):
        verify_signature(*(bytes.fromhex(text) for text in (public, signature, message)))


@pytest.mark.parametrize("where", range(0, 64, 7))
def test_the_verifier_refuses_a_signature_with_a_changed_byte(where: int) -> None:
    signature = bytearray(KEY.sign(b"message"))
    signature[where] ^= 4

    with pytest.raises(Refused):
        verify_signature(bytes.fromhex(KEY.public_hex), bytes(signature), b"message")


def test_the_verifier_refuses_a_second_form_of_a_signature() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    signature = KEY.sign(b"message")
    larger = int.from_bytes(signature[32:], "little") + order

    with pytest.raises(Refused):
        verify_signature(
            bytes.fromhex(KEY.public_hex),
            signature[:32] + larger.to_bytes(32, "little"),
            b"message",
        )


@pytest.mark.parametrize("public", [b"\x01" + bytes(31), bytes(32), b"\xff" * 32])
def test_the_verifier_refuses_a_key_that_would_accept_anything(public: bytes) -> None:
    with pytest.raises(Refused):
        verify_signature(public, b"\x01" + bytes(63), b"message")


def test_the_commands_that_the_readme_gives_for_verifying_by_hand_work(bundle: Path) -> None:
    text = (bundle / "README.md").read_text().replace("RELEASE_KEY`", "").replace("/tmp/", "../")
    commands = [line.strip() for line in text.splitlines() if line.startswith("       ")]
    script = "\n".join(commands[:4]).replace("RELEASE_KEY", KEY.public_hex)
    if shutil.which("xxd") is None:
        script = script.replace(
            "xxd -r -p",
            "python3 -c 'import sys; sys.stdout.buffer.write(bytes.fromhex(sys.stdin.read()))'",
        )

    def verified() -> bool:
        command = ["bash", "-euc", script]
        return subprocess.run(command, cwd=bundle, capture_output=True, check=False).returncode == 0

    assert verified()
    (bundle / "install.sh").write_text("true")
    assert not verified()


# What is refused


def change_a_wheel(bundle: Path) -> None:
    (wheel,) = (bundle / "wheels").iterdir()
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    wheel.write_bytes(data)


def change_pip(bundle: Path) -> None:
    (wheel,) = (bundle / "tools").iterdir()
    wheel.write_bytes(wheel.read_bytes() + b"\0")


def change_the_sums(bundle: Path) -> None:
    sums = bundle / SUMS
    sums.write_bytes(sums.read_bytes().replace(b"a", b"b", 1))


def change_the_signature(bundle: Path) -> None:
    data = bytearray((bundle / SIGNATURE).read_bytes())
    data[40] ^= 1
    (bundle / SIGNATURE).write_bytes(data)


def add_a_file(bundle: Path) -> None:
    (bundle / "wheels" / "sitecustomize.py").write_text("raise SystemExit")


def remove_a_file(bundle: Path) -> None:
    (bundle / "requirements.txt").unlink()


def link_a_file(bundle: Path) -> None:
    (bundle / "LICENSE").rename(bundle.parent / "elsewhere")
    (bundle / "LICENSE").symlink_to(bundle.parent / "elsewhere")


def link_a_folder(bundle: Path) -> None:
    (bundle / "units").rename(bundle.parent / "units")
    (bundle / "units").symlink_to(bundle.parent / "units")


def sign_with_another_key(bundle: Path) -> None:
    other = SigningKey.generate()
    (bundle / SIGNATURE).write_bytes(other.sign(DOMAIN + (bundle / SUMS).read_bytes()))


def sign_a_name(name: str) -> Callable[[Path], None]:
    """What even the publisher cannot do: name a file outside the bundle."""

    def change(bundle: Path) -> None:
        (bundle.parent / "outside").write_text("")
        digest = hashlib.sha256(b"").hexdigest()
        sums = (bundle / SUMS).read_bytes() + f"{digest}  {name}\n".encode()
        (bundle / SUMS).write_bytes(sums)
        (bundle / SIGNATURE).write_bytes(KEY.sign(DOMAIN + sums))

    return change


CHANGES = {
    "a byte of a wheel": change_a_wheel,
    "a byte of pip": change_pip,
    "a byte of the sums": change_the_sums,
    "a byte of the signature": change_the_signature,
    "a file too many": add_a_file,
    "a file too few": remove_a_file,
    "a link to a file": link_a_file,
    "a link to a folder": link_a_folder,
    "another key": sign_with_another_key,
    "a name above": sign_a_name("../outside"),
    "an absolute name": sign_a_name("/etc/passwd"),
    "a name twice": sign_a_name("LICENSE"),
    "a hidden step up": sign_a_name("wheels/../../outside"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_bundle_that_was_changed_is_refused(bundle: Path, change: Callable[[Path], None]) -> None:
    verify_bundle(bundle, KEY.public_hex)
    change(bundle)

    with pytest.raises(Refused):
        verify_bundle(bundle, KEY.public_hex)


@pytest.mark.parametrize(
    "change", ["a byte of pip", "a byte of the signature", "a file too many", "another key"]
)
def test_the_installer_refuses_before_anything_of_the_bundle_runs(
    bundle: Path, tmp_path: Path, change: str
) -> None:
    CHANGES[change](bundle)

    done = install(bundle, tmp_path / "root")

    assert done.returncode == 1
    assert "bundle refused" in done.stderr
    assert snapshot(tmp_path / "root").keys() <= {"opt", "opt/fedward"}


def test_without_the_publishers_key_nothing_is_installed(bundle: Path, tmp_path: Path) -> None:
    done = install(bundle, tmp_path / "root", key=None)

    assert done.returncode == 1
    assert "expected --key" in done.stderr


def test_another_publishers_upgrade_is_refused(one: Path, tmp_path: Path) -> None:
    root, other = tmp_path / "root", SigningKey.generate()
    stranger = tiny_bundle(tmp_path / "stranger", version="9.0.0", key=other)
    install(one, root)

    named = install(stranger, root, key=other)
    unnamed = install(stranger, root, key=None)

    assert "found another with --key" in named.stderr
    assert "bundle refused" in unnamed.stderr
    assert (root / "opt/fedward/current").readlink() == Path("1.0.0")


def test_a_site_is_not_installed_on_a_coordinators_machine(one: Path, tmp_path: Path) -> None:
    (tmp_path / "root/opt/fedward").mkdir(parents=True)
    (tmp_path / "root/opt/fedward/role").write_text("coordinator\n")

    done = install(one, tmp_path / "root")

    assert done.returncode == 1
    assert "found a coordinator" in done.stderr


def test_another_python_than_the_bundles_is_refused(one: Path, tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)

    done = run(
        one / "install.sh", "--python", str(other), "--key", KEY.public_hex, root=tmp_path / "root"
    )

    assert done.returncode == 1
    assert "which this bundle was built for" in done.stderr


# What installing leaves


def test_an_installed_program_runs_from_its_own_folder(one: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"

    done = install(one, root)

    assert done.returncode == 0, done.stderr
    program = root / "opt/fedward/current/bin/fedward-client"
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["1.0.0", str(root / "opt/fedward/1.0.0")]
    modes = {
        path: stat.S_IMODE((root / path).stat().st_mode)
        for path in ("etc/fedward", "etc/fedward/site.toml.example", "var/lib/fedward")
    }
    assert list(modes.values()) == [0o750, 0o640, 0o700]
    assert (root / "etc/systemd/system/fedward-guard.service").is_file()
    assert not list((root / "opt/fedward").glob(".stage*"))
    assert not (root / "opt/fedward/current/bin/pip").exists()


def test_installing_twice_changes_nothing_and_keeps_settings(one: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    install(one, root)
    (root / "etc/fedward/site.toml").write_text("mine")
    (root / "etc/fedward/site.toml.example").write_text("mine too")
    before = snapshot(root)

    done = install(one, root, key=None)

    assert done.returncode == 0, done.stderr
    assert "there already" in done.stdout
    assert snapshot(root) == before


def test_an_upgrade_keeps_the_version_before_and_state_and_can_be_taken_back(
    one: Path, two: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    install(one, root)
    (root / "var/lib/fedward/ledger").write_text("spent")

    install(two, root, key=None)

    assert links(root) == ["1.1.0", "1.0.0"]
    done = run(one / "install.sh", "--rollback", root=root)
    assert done.returncode == 0, done.stderr
    assert links(root) == ["1.0.0", "1.1.0"]
    subprocess.run([root / "opt/fedward/current/bin/fedward-client"], check=True)
    assert (root / "var/lib/fedward/ledger").read_text() == "spent"


def test_what_an_interrupted_install_left_is_replaced(one: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    half = root / "opt/fedward/1.0.0"
    half.mkdir(parents=True)
    (half / "half").write_text("")

    done = install(one, root)

    assert done.returncode == 0, done.stderr
    assert not (half / "half").exists()
    assert (half / "bin/fedward-client").exists()


def test_uninstalling_says_what_it_keeps_and_purging_leaves_nothing(
    one: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    install(one, root)
    (root / "var/lib/fedward/ledger").write_text("spent")

    first = run(root / "opt/fedward/uninstall.sh", root=root)

    assert first.returncode == 0, first.stderr
    assert f"kept {root}/var/lib/fedward" in first.stdout
    assert (root / "var/lib/fedward/ledger").exists()
    assert not (root / "opt").exists()
    second = run(one / "uninstall.sh", "--purge", root=root)
    assert second.returncode == 0, second.stderr
    assert snapshot(root) == {}


# What a bundle holds


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client bundle as a hospital gets it."""
    out = tmp_path_factory.mktemp("real")
    build_own_wheels(ROLES["client"], out)
    constraints = read_constraints((ROOT / "constraints.txt").read_text())
    return build_bundle(
        ROLES["client"], wheelhouse=Wheelhouse([out, WHEELHOUSE], constraints), out=out, key=KEY
    )


def test_the_clients_bundle_holds_no_server_code_and_no_test_tool(real: Path) -> None:
    names = {path.name.partition("-")[0] for path in (real / "wheels").iterdir()}

    assert {"fedward_client", "fedward_common", "torch", "flwr", "opacus"} <= names
    assert not names & {"fedward_server", "pytest", "scikit_learn", "pg8000"}
    for wheel in (real / "wheels").glob("fedward_*.whl"):
        tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
        assert not [top for top in tops if "server" in top]


def test_every_wheel_stands_in_the_requirements_by_its_hash(real: Path) -> None:
    listed = re.findall(
        r"--hash=sha256:([0-9a-f]{64})$", (real / "requirements.txt").read_text(), re.MULTILINE
    )
    found = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (real / "wheels").iterdir()]

    assert sorted(listed) == sorted(found)


def test_the_bill_of_materials_is_cyclonedx_and_names_every_wheel(real: Path) -> None:
    text = (real / "sbom.cdx.json").read_text()

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    components = [*bill["components"], bill["metadata"]["component"]]
    hashes = {component["hashes"][0]["content"] for component in components}
    wheels = [*(real / "wheels").iterdir(), *(real / "tools").iterdir()]
    assert hashes == {hashlib.sha256(path.read_bytes()).hexdigest() for path in wheels}
    silent = {c["name"] for c in components if "licenses" not in c}
    assert silent <= {"bed-reader", "dm-tree", "iterators"}  # a LICENSE file and no word of it


def test_the_clients_versions_are_those_of_the_constraints(real: Path) -> None:
    constraints = read_constraints((ROOT / "constraints.txt").read_text())
    for line in (real / "requirements.txt").read_text().splitlines():
        name, _, version = line.split()[0].partition("==")
        if name in constraints:
            assert version.partition("+")[0] == str(constraints[name])


def test_the_same_sources_and_key_give_the_same_bundle(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build_own_wheels(ROLES["client"], tmp_path / name)
        (wheel,) = (tmp_path / name).glob("fedward_common-*.whl")
        wheel.rename(tmp_path / f"{name}.whl")
        tiny_bundle(tmp_path / name / "tiny")

    assert (tmp_path / "a.whl").read_bytes() == (tmp_path / "b.whl").read_bytes()
    a, b = (snapshot(tmp_path / name / "tiny" / "out") for name in ("a", "b"))
    assert a == b


def test_a_wheel_that_is_missing_is_named(tmp_path: Path) -> None:
    build_own_wheels(ROLES["client"], tmp_path)

    with pytest.raises(BuildError, match=r"expected a wheel of .* found none. Run `make setup`"):
        Wheelhouse([tmp_path], {}).closure("fedward-client")


def test_the_settings_examples_are_valid(tmp_path: Path) -> None:
    for name in ("site.toml", "coordinator.toml"):
        text = (ROOT / "deploy/bundle/settings" / name).read_text()
        (tmp_path / name).write_text(text.replace("@ROOT@", str(tmp_path)))

    site = load_site_settings(tmp_path / "site.toml")
    coordinator = load_coordinator_settings(tmp_path / "coordinator.toml")

    assert site.guard.worker_user == "fedward-worker"
    assert not site.approvers
    assert coordinator.enrolment.operators_needed == 2


def test_the_unit_starts_the_bridge_on_the_port_that_settings_say(tmp_path: Path) -> None:
    text = (ROOT / "deploy/bundle/settings/site.toml").read_text().replace("@ROOT@", str(tmp_path))
    (tmp_path / "site.toml").write_text(text)
    settings = load_site_settings(tmp_path / "site.toml")
    unit = (ROOT / "deploy/systemd/site/fedward-bridge.service").read_text()

    assert f"--listen 127.0.0.1:{settings.ports.gateway} " in unit
    assert f"--to {settings.fleet_socket}".replace(str(tmp_path), "@ROOT@") in unit
    assert tomllib.loads(text)["isolation"]["network"] == "none"


@pytest.mark.slow
def test_the_clients_bundle_installs_without_a_network_and_its_program_starts(
    real: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"

    done = install(real, root)

    assert done.returncode == 0, done.stderr
    python = root / "opt/fedward/current/bin/python"
    check = (
        "import fedward_client.cli, torch; import importlib.util as u; "
        "assert u.find_spec('fedward_server') is None and torch.version.cuda is None"
    )
    subprocess.run([python, "-I", "-c", check], check=True)
    subprocess.run([python.parent / "fedward-client", "--help"], check=True, capture_output=True)
    run(root / "opt/fedward/uninstall.sh", "--purge", root=root)
    assert snapshot(root) == {}


def test_the_servers_bundle_holds_no_client_code_and_the_postgresql_driver(tmp_path: Path) -> None:
    build_own_wheels(ROLES["server"], tmp_path)
    constraints = read_constraints((ROOT / "constraints.txt").read_text())

    wheels = Wheelhouse([tmp_path, WHEELHOUSE], constraints).closure(ROLES["server"].requirement)

    assert {"fedward-server", "fedward-common", "pg8000", "alembic"} <= set(wheels)
    assert not set(wheels) & {"fedward-client", "pydicom", "matplotlib", "pytest"}
