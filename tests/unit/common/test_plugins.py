"""Model plugins: found and hashed without running them, loaded only with the expected files."""

import importlib
import itertools
import marshal
import py_compile
import sys
from collections.abc import Iterator
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from fedward_common.errors import ConfigError, SignatureRefused
from fedward_common.models import registry
from fedward_common.models.plugins import find_plugin, register_installed
from fedward_common.study.spec import ModelSpec
from tests.support.tiny_plugin import CODE, MODEL, PACKAGE, install

COUNTER = itertools.count()
EVIL = "raise RuntimeError('the plugin ran')\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where packages are installed; what was loaded from it is forgotten again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("hospital_"):
            del sys.modules[name]


def installed(place: Path, **changes: str) -> Path:
    """Under a module name of its own, so that no test sees what another imported."""
    package = install(place, module=f"hospital_{next(COUNTER)}", **changes)
    importlib.invalidate_caches()
    return package


def digest() -> str:
    plugin = find_plugin(MODEL)
    assert plugin is not None
    return plugin.sha256


def test_an_installed_plugin_is_found_with_its_package_and_version(place: Path) -> None:
    installed(place)

    plugin = find_plugin(MODEL)

    assert plugin is not None
    assert (plugin.package, plugin.version) == (PACKAGE, "1.0")
    assert find_plugin("no-such-net") is None


def test_finding_and_hashing_run_no_code_of_it(place: Path) -> None:
    package = installed(place, code=EVIL)
    (package / "__init__.py").write_text(EVIL)

    assert len(digest()) == 64
    assert package.name not in sys.modules


def test_the_hash_is_over_every_file_whatever_record_says(place: Path) -> None:
    package = installed(place)
    found = [digest()]
    (package / "models.py").write_text(CODE + "\n")
    found.append(digest())
    (package / "weights.bin").write_bytes(b"1")
    found.append(digest())
    (package / "deeper").mkdir()
    (package / "deeper" / "more.py").write_text("")
    found.append(digest())
    (package / "deeper" / "more.py").rename(package / "deeper" / "other.py")
    found.append(digest())
    (package / "sourceless.pyc").write_bytes(b"code")
    found.append(digest())

    assert len(set(found)) == len(found)


def test_another_target_in_the_same_files_is_another_hash(place: Path) -> None:
    package = installed(place)
    before = digest()
    entry_points = place / f"{package.name}-1.0.dist-info" / "entry_points.txt"
    entry_points.write_text(entry_points.read_text().replace(":build", ":other"))
    importlib.invalidate_caches()

    assert digest() != before


def test_equal_files_in_another_place_have_the_same_hash(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = place / "first"
    install(first, module="hospital_same")
    monkeypatch.syspath_prepend(str(first))
    importlib.invalidate_caches()
    before = digest()
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(first)])
    second = place / "second"
    install(second, module="hospital_same")
    monkeypatch.syspath_prepend(str(second))
    importlib.invalidate_caches()

    assert digest() == before


def test_a_link_in_a_plugin_is_refused(place: Path) -> None:
    package = installed(place)
    (package / "secret").symlink_to("/etc/hostname")

    with pytest.raises(ConfigError, match="plain files"):
        find_plugin(MODEL)


def test_two_packages_that_bring_one_model_are_refused(place: Path) -> None:
    installed(place)
    installed(place, name="another-package")

    with pytest.raises(ConfigError, match="one installed package"):
        find_plugin(MODEL)


def test_a_plugin_is_built_and_initialised_like_any_model(place: Path) -> None:
    installed(place)

    register_installed(MODEL, sha256=digest())

    shapes = registry.model_shapes(ModelSpec(name=MODEL), inputs=3)
    assert shapes == {"0.linear.weight": (1, 3), "0.linear.bias": (1,)}


def test_other_files_than_the_approved_ones_are_not_loaded(place: Path) -> None:
    package = installed(place)
    approved = digest()
    (package / "models.py").write_text(EVIL)

    with pytest.raises(SignatureRefused, match="approved plugin"):
        register_installed(MODEL, sha256=approved)

    assert not registry.is_known(MODEL)


def test_a_cache_beside_the_source_is_not_what_runs(place: Path) -> None:
    """A hostile .pyc under the time and size of the good source is not in the hash."""
    package = installed(place)
    approved = digest()
    source = package / "models.py"
    cache = Path(cache_from_source(str(source)))
    py_compile.compile(str(source), cfile=str(cache))
    header = cache.read_bytes()[:16]
    cache.write_bytes(header + marshal.dumps(compile(EVIL, str(source), "exec")))
    assert digest() == approved

    register_installed(MODEL, sha256=approved)

    assert registry.is_known(MODEL)


def test_a_plugin_does_not_take_the_place_of_a_built_in_model(place: Path) -> None:
    installed(place, model="mlp", code=EVIL)

    register_installed("mlp")

    assert registry.build_model(ModelSpec(name="mlp", hidden=(4,)), 3) is not None


def test_an_expected_plugin_that_is_not_installed_is_an_error(place: Path) -> None:
    with pytest.raises(ConfigError, match="found none"):
        register_installed("no-such-net", sha256="0" * 64)
    register_installed("no-such-net")
    assert not registry.is_known("no-such-net")


def test_a_plugin_that_does_not_load_is_named_by_its_kind_of_error(place: Path) -> None:
    installed(place, code="import a_package_that_is_not_there\n")

    with pytest.raises(ConfigError, match="ModuleNotFoundError"):
        register_installed(MODEL)
