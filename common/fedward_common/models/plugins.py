"""Models that an installed package brings (entry points `fedward.models`): found, hashed, loaded.

A plugin is code. Who decides whether it runs is named elsewhere: at a site a person's signed
approval of (package, version, SHA-256), checked by the guard, which never runs one; at the
coordinator whoever installs packages there. Nothing here loads a plugin just because it is found.
"""

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import ConfigError, SignatureRefused
from fedward_common.ids import Digest

if TYPE_CHECKING:
    from fedward_common.models.registry import ModelFactory

GROUP: Final = "fedward.models"
CACHE: Final = "__pycache__"
BUILT_IN: Final = frozenset({"logistic-regression", "linear", "mlp", "gru", "lstm"})
"""Names of the registry that no plugin can take: who only asks for a plugin need not look for one,
nor load torch to know. Looking reads the metadata of every installed package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plugin:
    """An installed model plugin: `sha256` is over every file of its package, whatever RECORD says.

    Compiled caches are left out, and never read when a plugin is loaded; packages that it imports
    are not covered.
    """

    model: str
    package: str
    version: str
    sha256: Digest
    entry_point: EntryPoint


_FROM_PLUGINS: Final[set[str]] = set()
"""The names in this process's registry that came from plugins."""


def find_plugin(model: str) -> Plugin | None:
    """The installed plugin for a model's name, or None. No code of it runs.

    Raises:
        ConfigError: more than one package brings the name, or its files cannot all be hashed.
    """
    found = list(entry_points(group=GROUP, name=model))
    if not found:
        return None
    one, package = found[0], found[0].dist
    if len(found) > 1 or package is None:
        raise ConfigError(
            f"model {model!r}: expected one installed package that brings it, found {len(found)}"
        )
    return Plugin(
        model=model,
        package=package.name,
        version=package.version,
        sha256=_hash(one),
        entry_point=one,
    )


def register_installed(model: str, *, sha256: str | None = None) -> None:
    """Makes an installed plugin's model known to the registry; built-in models stay what they are.

    With `sha256` only the plugin with exactly these files is loaded.

    Raises:
        SignatureRefused: its files are not the expected ones.
        ConfigError: it cannot be loaded, or `sha256` is given and there is no such plugin.
    """
    # Not at the top: it loads torch, and a guard looks for plugins without it.
    from fedward_common.models.registry import is_known, register_model  # noqa: PLC0415

    if is_known(model):
        return
    plugin = find_plugin(model)
    if plugin is None:
        if sha256 is not None:
            raise ConfigError(f"model {model!r}: expected an installed plugin, found none")
        return
    if sha256 is not None and plugin.sha256 != sha256:
        raise SignatureRefused(
            f"model {model!r}: expected the files of the approved plugin, found others in "
            f"{plugin.package} {plugin.version}"
        )
    register_model(model)(_load(plugin))
    _FROM_PLUGINS.add(model)


def is_built_in(model: str) -> bool:
    """Whether a model is one of ours: known, and no plugin's code runs when it is built."""
    from fedward_common.models.registry import is_known  # noqa: PLC0415 - see above

    return is_known(model) and model not in _FROM_PLUGINS


def _load(plugin: Plugin) -> "ModelFactory":
    """The plugin's factory, compiled from the files that were hashed."""
    before = sys.pycache_prefix, sys.dont_write_bytecode
    with tempfile.TemporaryDirectory() as empty:
        # A cache beside the source would be loaded in its place, and is not in the hash.
        sys.pycache_prefix, sys.dont_write_bytecode = empty, True
        try:
            factory: ModelFactory = plugin.entry_point.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"model {plugin.model!r}: expected {plugin.package} to load, found "
                f"{type(error).__name__}"
            ) from error
        finally:
            sys.pycache_prefix, sys.dont_write_bytecode = before
    return factory


def _hash(entry_point: EntryPoint) -> Digest:
    """The digest of the entry point's target and of every file of its package, by name."""
    root = _root(entry_point)
    files = {
        path.relative_to(root.parent).as_posix(): sha256_hex(path.read_bytes())
        for path in sorted(_files(root))
    }
    return Digest(sha256_hex(canonical_json({"entry_point": entry_point.value, "files": files})))


def _root(entry_point: EntryPoint) -> Path:
    """The folder of the package, or the file of the module, that the entry point is in."""
    name = entry_point.module.partition(".")[0]
    spec = importlib.util.find_spec(name)  # a name without a dot: nothing is imported
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    if spec is not None and not places and spec.origin is not None:
        places = [spec.origin]
    if len(places) != 1:
        raise ConfigError(
            f"model {entry_point.name!r}: expected its package {name} in one place, found "
            f"{len(places)}"
        )
    return Path(places[0])


def _files(root: Path) -> Iterator[Path]:
    if root.is_file() and not root.is_symlink():
        yield root
        return
    for path in root.rglob("*"):
        if CACHE in path.relative_to(root).parts:
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ConfigError(
                f"plugin {root.name}: expected plain files only, found a link or something else"
            )
        if path.is_file():
            yield path
