"""Fails when the closure of the three distributions holds a licence that may not be shipped.

No GPL or AGPL and nothing unknown; LGPL only in extras (rules 28). Licences are read from the
installed packages; where a package's metadata is silent the table below says what its own LICENSE
file says.
"""

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

ROOTS = ("fedward-common", "fedward-server", "fedward-client")
EXTRAS = {"fedward-server": ("sandbox",), "fedward-client": ("imaging", "genomics", "omics")}
FORBIDDEN = re.compile(r"\bA?GPL|Affero|GNU General Public|\bSSPL|Business Source", re.IGNORECASE)
LESSER = re.compile(r"LGPL|Lesser General Public", re.IGNORECASE)
SILENT: dict[str, str] = {
    "bed-reader": "Apache-2.0",
    "dm-tree": "Apache-2.0",
    "fedward-common": "Apache-2.0",
}


def licence(package: Distribution) -> str:
    """What the package says of its licence, shortest form first; empty when it is silent."""
    meta = package.metadata
    classifiers = [c for c in meta.get_all("Classifier") or [] if c.startswith("License ::")]
    text = meta.get("License-Expression") or "; ".join(c.rpartition(" :: ")[2] for c in classifiers)
    short = (meta.get("License") or "").split("\n")[0]
    return text or short or SILENT.get(meta["Name"].lower(), "")


def closure() -> dict[str, str]:
    """Name -> licence of every package that the three distributions bring along."""
    found: dict[str, str] = {}
    queue = [(root, extra) for root in ROOTS for extra in ("", *EXTRAS.get(root, ()))]
    seen: set[tuple[str, str]] = set()
    while queue:
        name, extra = queue.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # a requirement of another platform
        found[name] = licence(package)
        for line in package.requires or []:
            need = Requirement(line)
            for wanted in ("", extra):
                if need.marker is None or need.marker.evaluate({"extra": wanted}):
                    key = re.sub(r"[-_.]+", "-", need.name).lower()
                    queue += [(key, e) for e in (need.extras or {""})] + [(key, "")]
    return found


def main() -> int:
    """0 when every licence may be shipped; prints the others."""
    packages = closure()
    bad = {
        name: text or "unknown"
        for name, text in sorted(packages.items())
        if not text or FORBIDDEN.search(LESSER.sub("", text)) or LESSER.search(text)
    }
    for name, text in bad.items():
        print(f"licence: {name}: {text} may not be in what Fedward ships")
    print(f"licence check: {len(packages)} packages, {len(bad)} refused")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
