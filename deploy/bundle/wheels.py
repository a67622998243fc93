"""The wheels of one role: its distribution, what that requires on this platform, and no more."""

import hashlib
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version


class BuildError(Exception):
    """A bundle cannot be built; the text says what is missing and how to get it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    """One wheel file and what its metadata says."""

    path: Path
    name: str
    version: Version
    metadata: Message
    sha256: str

    @property
    def licence(self) -> str:
        """What the package says of its licence, shortest form first; empty when it is silent."""
        classifiers = self.metadata.get_all("Classifier") or []
        named = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License ::")]
        # The parser gives a Header, not a text, where a line is not ASCII.
        short = str(self.metadata.get("License") or "").split("\n")[0]
        return str(self.metadata.get("License-Expression") or "; ".join(named) or short)

    def requires(self, extras: frozenset[str]) -> Iterator[Requirement]:
        """What it needs on this platform with these extras."""
        environment = {key: str(value) for key, value in default_environment().items()}
        for line in self.metadata.get_all("Requires-Dist") or []:
            need = Requirement(line)
            markers = [environment | {"extra": extra} for extra in (extras or {""})]
            if need.marker is None or any(need.marker.evaluate(m) for m in markers):
                yield need


def read_wheel(path: Path) -> Wheel:
    """The wheel at `path`; reads its metadata, runs nothing.

    Raises:
        BuildError: it is not a wheel.
    """
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
        with zipfile.ZipFile(path) as archive:
            (entry,) = (
                e for e in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", e)
            )
            metadata = BytesParser().parsebytes(archive.read(entry))
    except (ValueError, zipfile.BadZipFile) as error:
        raise BuildError(f"{path.name}: expected a wheel, found something else") from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Wheel(path=path, name=name, version=version, metadata=metadata, sha256=digest)


def read_constraints(text: str) -> dict[str, Version]:
    """Name -> the exact version that constraints.txt names."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    pairs = (line.partition("==") for line in lines if line)
    return {canonicalize_name(name): Version(version) for name, _, version in pairs}


class Wheelhouse:
    """A folder of wheels, seen with this interpreter's tags and the project's constraints."""

    def __init__(self, folders: Iterable[Path], constraints: Mapping[str, Version]) -> None:
        self._constraints = constraints
        self._paths: dict[str, list[Path]] = {}
        for folder in folders:
            for path in sorted(folder.glob("*.whl")):
                self._paths.setdefault(parse_wheel_filename(path.name)[0], []).append(path)

    def best(self, need: Requirement) -> Wheel:
        """The wheel that fits `need`, the constraints and this platform best.

        Raises:
            BuildError: there is none.
        """
        name = canonicalize_name(need.name)
        order = {tag: rank for rank, tag in enumerate(sys_tags())}
        fitting: list[tuple[int, Version, Path]] = []
        exact = self._constraints.get(name)
        for path in self._paths.get(name, []):
            _, version, _, tags = parse_wheel_filename(path.name)
            ranks = [order[tag] for tag in tags if tag in order]
            # 2.13.0 in constraints.txt means 2.13.0+cpu as well (rules 26).
            right = exact is None or exact in (version, Version(version.public))
            if ranks and right and need.specifier.contains(version, prereleases=True):
                fitting.append((-min(ranks), version, path))
        if not fitting:
            wanted = f"{name}=={exact}" if exact else str(need)
            raise BuildError(
                f"expected a wheel of {wanted} for this Python in the wheelhouse, found none. Run "
                "`make setup`, which fills it, or name a folder that has it with --wheels"
            )
        return read_wheel(max(fitting, key=lambda entry: (entry[1], entry[0]))[2])

    def closure(self, root: str) -> dict[str, Wheel]:
        """Name -> wheel of `root` (a requirement) and of everything it requires here.

        Raises:
            BuildError: something that is required is not in the wheelhouse.
        """
        found: dict[str, Wheel] = {}
        extras: dict[str, set[str]] = {}
        queue = [Requirement(root)]
        while queue:
            need = queue.pop()
            name = canonicalize_name(need.name)
            known = extras.get(name)
            if known is not None and set(need.extras) <= known:
                continue
            extras[name] = (known or set()) | set(need.extras)
            wheel = found[name] = found.get(name) or self.best(need)
            queue += wheel.requires(frozenset(extras[name]))
        return dict(sorted(found.items()))
