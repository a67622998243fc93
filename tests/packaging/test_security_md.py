"""SECURITY.md names modules and tests that exist; what it says of the code holds in the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
SOURCES = [
    path
    for folder in ("common", "server", "client")
    for path in (ROOT / folder).rglob("*.py")
    if not path.stem.endswith(("_pb2", "_pb2_grpc"))
]


def named_tests() -> Iterator[tuple[str, str]]:
    """(file, function) of every test that SECURITY.md names; '' for a whole file."""
    file = ""
    for name in re.findall(r"`((?:tests/[^`]*|::test_[^`]*))`", TEXT):
        path, _, function = name.partition("::")
        file = path or file
        yield file, function


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


@pytest.mark.parametrize(("file", "function"), sorted(set(named_tests())))
def test_every_test_that_is_named_exists(file: str, function: str) -> None:
    assert (ROOT / file).is_file()
    if function:
        assert function in functions(ROOT / file)


def test_every_module_that_is_named_exists() -> None:
    modules = re.findall(r"`((?:common|server|client|deploy)/[^`]*\.py)`", TEXT)

    assert len(modules) > 20
    assert [module for module in modules if not (ROOT / module).is_file()] == []


def test_every_row_names_a_module_and_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and "`" in line]

    assert len(rows) > 30
    for row in rows:
        assert re.search(r"`(common|server|client|deploy)/", row), row
        assert "`tests/" in row, row


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_nothing_in_the_product_unpickles_or_evaluates() -> None:
    forbidden = re.compile(
        r"(pickle|marshal|shelve|joblib|dill|cloudpickle)\..*|(torch|np|numpy)\.load|eval|exec"
        r"|yaml\.(load|unsafe_load|full_load)|os\.system|os\.popen"
    )

    found = [(path.name, call) for path in SOURCES for call in calls(path)]

    assert [entry for entry in found if forbidden.fullmatch(entry[1])] == []


def test_no_check_is_an_assert() -> None:
    asserts = [
        (path, node.lineno)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]

    assert asserts == []


def test_broad_excepts_stand_in_entry_points_only() -> None:
    """Each has its reason beside it; style.md allows them in entry points alone."""
    allowed = {"flower_app.py", "entry.py", "vcf.py"}  # cyvcf2 raises bare Exceptions
    broad = {
        path.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
    }

    assert broad <= allowed


def test_no_environment_variable_is_read_outside_entry_points() -> None:
    """Rules 11: configuration is read once in an entry point; nothing else can be switched."""
    readers = {
        path.name
        for path in SOURCES
        if re.search(r"os\.(environ|getenv)", path.read_text()) and "patient_dp" not in path.parts
    }

    assert readers <= {"flower_app.py", "cli.py", "processes.py", "tls.py"}


def test_the_source_without_noise_is_used_by_the_audit_alone() -> None:
    """Rules 11: `Quiet` probes made-up patients; nothing that touches real ones may know it."""
    users = {
        path.parent.name
        for path in SOURCES
        if re.search(r"\bQuiet\b", path.read_text()) and "audit" not in path.parts
    }

    assert users == set()


def test_no_module_is_longer_than_500_lines() -> None:
    assert [path.name for path in SOURCES if len(path.read_text().splitlines()) > 500] == []
