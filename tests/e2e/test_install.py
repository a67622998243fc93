"""A hospital installed from its offline bundle: no network at all, no source tree, nothing left."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHEELHOUSE = Path(sys.prefix) / "wheelhouse"

pytestmark = [pytest.mark.federation, pytest.mark.slow]

STUDY = """
import json, sys
from pathlib import Path
sys.path = [p for p in sys.path if p != {root!r}]
import fedward_client, fedward_common
print(json.dumps([fedward_client.__file__, fedward_common.__file__]))
"""


def run(*command: object, cwd: Path, **options: object) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, (command[:3], done.stdout[-2000:], done.stderr[-2000:])
    return str(done.stdout)


def offline(*command: object, cwd: Path, **options: object) -> str:
    """Runs in a network namespace without any interface that is up."""
    return run("unshare", "-rn", *command, cwd=cwd, **options)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A prefix in which install.sh put the client, built from this tree's own wheels."""
    folder = tmp_path_factory.mktemp("install")
    key = folder / "release.pem"
    run(sys.executable, "-m", "deploy.bundle.build", "--new-key", "--key", key, cwd=ROOT)
    lines = run(
        *(sys.executable, "-m", "deploy.bundle.build", "--role", "client"),
        *("--key", key, "--out", folder / "dist"),
        cwd=ROOT,
    ).splitlines()
    facts = dict(line.split(maxsplit=1) for line in lines if line.count(" ") == 1)
    prefix = folder / "root"
    offline(
        *(Path(facts["bundle"]) / "install.sh", "--key", facts["key"], "--root", prefix),
        *("--no-users", "--no-compile", "--python", sys.executable),
        cwd=folder,
    )
    yield prefix
    shutil.rmtree(folder, ignore_errors=True)


def test_the_installed_programs_are_not_the_source_tree(installed: Path, tmp_path: Path) -> None:
    python = installed / "opt" / "fedward" / "current" / "bin" / "python"

    found = offline(python, "-c", STUDY.format(root=str(ROOT)), cwd=tmp_path)

    assert str(ROOT) not in found
    assert str(installed) in found


def test_a_study_runs_from_installed_files(installed: Path, tmp_path: Path) -> None:
    """Two hospitals enrol, approve and train with the installed client; `doctor` fails nothing."""
    from fedward_server.sandbox.datasets import deal_breast_cancer
    from tests.e2e.test_enrolment import SITES, train
    from tests.support.joining import Joining

    programs = {
        "fedward-server": Path(sys.executable).parent / "fedward-server",
        "fedward-client": installed / "opt" / "fedward" / "current" / "bin" / "fedward-client",
    }
    tables = deal_breast_cancer(tmp_path / "data")
    with Joining(root=tmp_path, programs=programs) as joining:
        seen = train(joining, tables, revoke=None)

    assert all(
        finding["level"] != "fail" for site in SITES for finding in seen["doctor"][site]["findings"]
    )
    assert seen["state"] == "finished"


def test_uninstall_leaves_nothing(installed: Path) -> None:
    offline(
        installed / "opt" / "fedward" / "uninstall.sh",
        "--root",
        installed,
        "--purge",
        cwd=installed.parent,
    )

    left = (
        [path for path in installed.rglob("*") if not path.is_dir()] if installed.exists() else []
    )
    assert left == []
    assert os.path.commonpath([ROOT, installed]) != str(ROOT)
