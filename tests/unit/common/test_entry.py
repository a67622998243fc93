"""Every program ends with one line and the exit code of its error's class, and tells no values."""

import json
from pathlib import Path

import pytest

from fedward_common.entry import INTERNAL_EXIT, REFUSED_EXIT, run_program
from fedward_common.errors import BudgetExceeded, ConfigError, FedwardError


def fail(error: BaseException) -> None:
    raise error


def test_an_error_of_ours_is_one_line_and_its_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["program"])

    with pytest.raises(SystemExit) as ended:
        run_program(lambda: fail(ConfigError("site: expected x, found y")), name="program")

    assert ended.value.code == ConfigError.exit_code
    assert capsys.readouterr().err == "program: site: expected x, found y\n"


def test_with_json_an_error_is_an_object(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["program", "--json"])

    with pytest.raises(SystemExit):
        run_program(lambda: fail(BudgetExceeded("too much")), name="program")

    assert json.loads(capsys.readouterr().err) == {"error": "budget", "message": "too much"}


def test_a_defect_names_its_type_and_never_its_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["program"])

    with pytest.raises(SystemExit) as ended:
        run_program(lambda: fail(ValueError("patient 4711")), name="program")

    told = capsys.readouterr().err
    assert ended.value.code == INTERNAL_EXIT
    assert "ValueError" in told
    assert "4711" not in told


def test_every_class_of_error_has_its_own_exit_code_and_word() -> None:
    kinds = FedwardError.__subclasses__()

    assert len({kind.exit_code for kind in kinds}) == len(kinds)
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert all(2 <= kind.exit_code < INTERNAL_EXIT for kind in kinds)


def test_a_file_that_the_system_refuses_is_no_defect_and_is_not_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["program"])

    with pytest.raises(SystemExit) as ended:
        run_program((tmp_path / ("Muster" * 100)).read_bytes, name="program")

    told = capsys.readouterr().err
    assert ended.value.code == REFUSED_EXIT
    assert "File name too long" in told
    assert "Muster" not in told
