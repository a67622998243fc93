"""What the three wheels hold: their own package, the licence, and nothing of another side."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.ZipFile]:
    out = tmp_path_factory.mktemp("wheels")
    for folder in ("common", "server", "client"):
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
            cwd=ROOT / folder,
            check=True,
            capture_output=True,
        )
    return {path.name.partition("-")[0]: zipfile.ZipFile(path) for path in out.glob("*.whl")}


def test_each_wheel_holds_its_own_package_only(wheels: dict[str, zipfile.ZipFile]) -> None:
    assert set(wheels) == {"fedward_common", "fedward_server", "fedward_client"}
    for name, wheel in wheels.items():
        tops = {entry.partition("/")[0] for entry in wheel.namelist()}
        assert {top for top in tops if not top.endswith(".dist-info")} == {name}


def test_each_wheel_holds_its_licence_and_its_types(wheels: dict[str, zipfile.ZipFile]) -> None:
    licence = (ROOT / "LICENSE").read_bytes()
    for name, wheel in wheels.items():
        (entry,) = [e for e in wheel.namelist() if e.endswith(".dist-info/licenses/LICENSE")]
        assert wheel.read(entry) == licence
        assert f"{name}/py.typed" in wheel.namelist()


def test_the_server_wheel_holds_the_bundle_the_studies_and_the_page(
    wheels: dict[str, zipfile.ZipFile],
) -> None:
    names = set(wheels["fedward_server"].namelist())

    assert {
        "fedward_server/flower_bundle/pyproject.toml",
        "fedward_server/flower_bundle/LICENSE",
        "fedward_server/studies/heart.toml",
        "fedward_server/studies/breast-cancer.toml",
        "fedward_server/report/templates/report.html.j2",
    } <= names
    assert any(name.startswith("fedward_server/adapters/migrations/") for name in names)


def test_no_wheel_holds_a_python_file_of_the_bundle(wheels: dict[str, zipfile.ZipFile]) -> None:
    names = wheels["fedward_server"].namelist()

    assert not [
        n
        for n in names
        if n.startswith("fedward_server/flower_bundle/")
        and ".py" in n
        and not n.endswith("pyproject.toml")
    ]
