"""The worker takes ClientApp tasks only, and each task is a fork that ends with it."""

import os
import time
from pathlib import Path

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import LaunchResultStatus
from flwr.supercore.superexec.executor.types import ExecutionSpec

from fedward_client.adapters import flower_worker
from fedward_client.adapters.flower_worker import ForkExecutor, Zygote


def a_task(kind: TaskType) -> ExecutionSpec:
    return ExecutionSpec(
        task_type=kind,
        runtime_api_address="127.0.0.1:1",
        token="secret-token",
        insecure=True,
        root_certificates_path=None,
        runtime_dependency_install=False,
        parent_pid=None,
        suppress_output=False,
        task_id=1,
    )


def wait_for(folder: Path, count: int) -> list[str]:
    """What `count` files say once each has something in it."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        written = sorted(path.read_text() for path in folder.iterdir())
        if len(written) >= count and all(written):
            return written
        time.sleep(0.02)
    raise AssertionError(f"expected {count} files with text, found {len(written)}")


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ForkExecutor:
    """A zygote whose tasks write down who ran them instead of talking to SuperNode."""

    def record(*, runtime_api_address: str, token: str, **_: object) -> None:
        (tmp_path / str(os.getpid())).write_text(f"{runtime_api_address} {token}")

    monkeypatch.setattr(flower_worker, "run_clientapp", record)
    return ForkExecutor(Zygote())


def test_each_task_runs_in_a_process_of_its_own(executor: ForkExecutor, tmp_path: Path) -> None:
    for _ in range(3):
        result = executor.launch(a_task(TaskType.CLIENT_APP))
        assert result.status is LaunchResultStatus.ACCEPTED

    written = wait_for(tmp_path, 3)
    executor.close()

    assert written == ["127.0.0.1:1 secret-token"] * 3
    assert str(os.getpid()) not in {path.name for path in tmp_path.iterdir()}


def test_a_task_ends_with_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that waits for a SuperNode that is gone must not stay with records in memory."""

    def hang(**_: object) -> None:
        (tmp_path / str(os.getpid())).write_text("here")
        time.sleep(60)

    monkeypatch.setattr(flower_worker, "run_clientapp", hang)
    executor = ForkExecutor(Zygote())
    executor.launch(a_task(TaskType.CLIENT_APP))
    wait_for(tmp_path, 1)
    (path,) = tmp_path.iterdir()

    executor.close()

    limit = time.monotonic() + 10
    while Path(f"/proc/{path.name}").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    assert not Path(f"/proc/{path.name}").exists()


@pytest.mark.parametrize("kind", [k for k in TaskType if k is not TaskType.CLIENT_APP])
def test_any_other_kind_of_task_is_refused(executor: ForkExecutor, kind: TaskType) -> None:
    assert executor.launch(a_task(kind)).status is LaunchResultStatus.FAILED
    executor.close()


def test_only_client_apps_are_asked_for(executor: ForkExecutor) -> None:
    assert executor.get_eligible_capacity(set(TaskType)) == ({TaskType.CLIENT_APP}, set())
    executor.close()
