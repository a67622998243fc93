"""Service units, container files, the chart and the scripts pass the validators of their kinds."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from fedward_client.cli import app as client
from fedward_server.cli import app as server

PROGRAMS = {"client": client, "server": server}
DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted(DEPLOY.glob("systemd/*/*.service"))
SIDES = ("site", "coordinator")
SCRIPTS = [*DEPLOY.glob("bundle/*.sh"), *DEPLOY.glob("*.sh")]
CHART = DEPLOY / "helm" / "fedward-coordinator"
DIGEST = "image.digest=sha256:" + "0" * 64


def tool(name: str) -> str:
    """A validator that `make setup` (or Debian, for systemd) installed."""
    found = shutil.which(
        name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def check(*command: str | Path) -> str:
    done = subprocess.run(
        [tool(str(command[0])), *command[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def directives(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units of both sides as install.sh writes them."""
    folder = tmp_path_factory.mktemp("units")
    for unit in DEPLOY.glob("systemd/*/*"):
        (folder / unit.name).write_text(unit.read_text().replace("@ROOT@", ""))
    return folder


@pytest.mark.parametrize("name", [unit.name for unit in UNITS])
def test_a_service_is_confined(units: Path, name: str) -> None:
    check("systemd-analyze", "security", "--offline=yes", "--threshold=30", units / name)


def test_systemd_knows_every_key_of_every_unit(units: Path) -> None:
    """`verify` ends with 0 for a key it does not know: its words decide."""
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", *sorted(units.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )

    complaints = [
        line
        for line in done.stderr.splitlines()
        if "fedward" in line and "is not executable: No such file" not in line
    ]
    assert complaints == []


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_service_has_a_user_of_its_own_and_no_rights_beyond_its_work(unit: Path) -> None:
    found = directives(unit)
    given = " ".join(found["CapabilityBoundingSet"])

    assert found["UMask"] == ["0077"]
    assert found["NoNewPrivileges"] == ["yes"]
    if unit.stem == "fedward-arrange":
        assert "User" not in found
        assert "CAP_SYS" not in given
    else:
        assert found["User"][0].startswith("fedward-")
        assert given == ""


def test_only_the_gateway_of_a_site_has_a_network() -> None:
    open_ones = {
        unit.stem
        for unit in DEPLOY.glob("systemd/site/*.service")
        if directives(unit).get("PrivateNetwork") != ["yes"]
    }

    assert open_ones == {"fedward-gateway"}


@pytest.mark.parametrize("name", ["fedward-supernode", "fedward-worker"])
def test_supernode_and_worker_share_the_bridges_loopback_and_reach_nothing_else(name: str) -> None:
    found = directives(DEPLOY / "systemd" / "site" / f"{name}.service")

    assert found["JoinsNamespaceOf"] == ["fedward-bridge.service"]
    assert (found["IPAddressDeny"], found["IPAddressAllow"]) == (["any"], ["localhost"])


def test_a_units_command_is_one_that_the_programs_have(units: Path) -> None:
    for unit in UNITS:
        (command,) = directives(unit)["ExecStart"]
        program = re.search(r"/bin/(fedward-(?:client|server)) ([a-z-]+) ", command)
        if program is None:
            assert " -m fedward_common.bridge " in command
            continue
        help_of = subprocess.run(
            [Path(sys.executable).parent / program[1], program[2], "--help"],
            capture_output=True,
            check=False,
        )
        assert help_of.returncode == 0, command


def test_every_command_and_option_that_the_readme_names_exists() -> None:
    text = (DEPLOY / "README.md").read_text().replace("\\\n", " ")
    named = re.findall(r"fedward-(client|server) ([a-z]+)((?: [^`\n]*)?)", text)
    assert {("client", "enrol"), ("server", "init")} <= {
        (side, command) for side, command, _ in named
    }

    for side, command, rest in named:
        found = get_command(PROGRAMS[side]).commands[command]  # type: ignore[attr-defined]
        known = {option for parameter in found.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_passes_shellcheck(script: Path) -> None:
    check("shellcheck", script)


@pytest.mark.parametrize("side", SIDES)
def test_a_dockerfile_passes_hadolint_and_runs_as_nobody(side: str) -> None:
    file = DEPLOY / side / "Dockerfile"
    check("hadolint", "--failure-threshold", "style", file)

    users = re.findall(r"^USER (\d+)", file.read_text(), re.MULTILINE)
    assert users
    assert "0" not in users


@pytest.mark.parametrize("side", SIDES)
def test_a_compose_file_fits_its_schema(side: str) -> None:
    check(
        "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        DEPLOY / side / "compose.yaml",
    )


@pytest.mark.parametrize("side", SIDES)
def test_every_container_is_confined(side: str) -> None:
    services = yaml.safe_load((DEPLOY / side / "compose.yaml").read_text())["services"]

    for name, service in services.items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert name == "arrange" or not service["user"].startswith("0")
        assert "docker.sock" not in str(service)


def test_only_the_worker_sees_the_patients_table_and_only_the_gateway_a_network() -> None:
    services = yaml.safe_load((DEPLOY / "site" / "compose.yaml").read_text())["services"]
    readers = {name for name, s in services.items() if "fedward-data" in str(s["volumes"])}
    connected = {name for name, s in services.items() if "network_mode" not in s}

    assert readers == {"worker"}
    assert connected == {"gateway"}
    assert not any("ports" in service for service in services.values())


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the chart makes with its own values and an image's digest."""
    out = tmp_path_factory.mktemp("chart") / "all.yaml"
    out.write_text(check("helm", "template", "trial", CHART, "--set", DIGEST))
    return out


def test_the_chart_passes_lint() -> None:
    check("helm", "lint", "--strict", CHART, "--set", DIGEST)


def test_the_chart_makes_what_kubernetes_takes(manifests: Path) -> None:
    check("kubernetes-validate", "--strict", "-k", "1.30", manifests)


@pytest.mark.parametrize(
    "value", ["image.digest=latest", "image.tag=latest", "secrets.key=abc", "service.type=Any"]
)
def test_the_chart_refuses_what_its_schema_does_not_have(value: str) -> None:
    done = subprocess.run(
        [tool("helm"), "template", "trial", CHART, "--set", DIGEST, "--set", value],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode != 0
    assert "fedward-coordinator" in done.stderr


def test_the_charts_containers_are_confined_and_its_network_is_closed(manifests: Path) -> None:
    made: dict[str, Any] = {
        document["kind"]: document
        for document in yaml.safe_load_all(manifests.read_text())
        if document is not None
    }
    pod = made["StatefulSet"]["spec"]["template"]["spec"]
    policy = made["NetworkPolicy"]["spec"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in (*pod["containers"], *pod["initContainers"]):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "@sha256:" in container["image"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    assert "Secret" not in made


def test_no_value_of_the_chart_is_a_secret() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    names = set(re.findall(r'"(\w*(?:password|passphrase|token|key)\w*)"', json.dumps(schema)))

    assert names == set()


@pytest.mark.parametrize(
    "file",
    [*DEPLOY.glob("*/compose.yaml"), CHART / "values.yaml", CHART / "Chart.yaml"],
    ids=lambda file: f"{file.parent.name}/{file.name}",
)
def test_yaml_is_clean(file: Path) -> None:
    rules = "{extends: relaxed, rules: {line-length: disable}}"
    check("yamllint", "--strict", "-d", rules, file)
