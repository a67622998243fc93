"""Builds one offline bundle: a signed folder that a machine without a network installs from.

    python -m deploy.bundle.build --role client --key release.pem --out dist

The bundle is for the platform and the Python that build it. The same wheels, sources and key give
the same bytes.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from deploy.bundle.sbom import make_sbom
from deploy.bundle.verify import DOMAIN, SIGNATURE, SUMS, verify_bundle
from deploy.bundle.wheels import BuildError, Wheel, Wheelhouse, read_constraints
from fedward_common.errors import FedwardError
from fedward_common.trust.private_files import write_private
from fedward_common.trust.signing import SigningKey

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PIP = "pip"
EPOCH = "315532800"
"""1980-01-01, the first day a zip archive can name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """What a bundle installs: a distribution, our packages it is made of, and its service units."""

    requirement: str
    sources: tuple[str, ...]
    units: str
    settings: str

    @property
    def name(self) -> str:
        """The distribution: `fedward-client` or `fedward-server`."""
        return Requirement(self.requirement).name


ROLES = {
    "client": Role(
        requirement="fedward-client[imaging,genomics,omics]",
        sources=("common", "client"),
        units="site",
        settings="site.toml",
    ),
    "server": Role(
        requirement="fedward-server[postgresql]",
        sources=("common", "server"),
        units="coordinator",
        settings="coordinator.toml",
    ),
}


def build_own_wheels(role: Role, out: Path) -> None:
    """Writes the wheels of our packages into `out`, the same bytes every time.

    Raises:
        BuildError: hatchling failed.
    """
    environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH}
    for source in role.sources:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
        done = subprocess.run(
            command,
            cwd=ROOT / source,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BuildError(f"{source}: expected hatchling to build a wheel. {done.stderr}")


def build_bundle(role: Role, *, wheelhouse: Wheelhouse, out: Path, key: SigningKey) -> Path:
    """The folder of the signed bundle, below `out`; one of the same name is replaced.

    Raises:
        BuildError: a wheel is missing.
    """
    wheels = wheelhouse.closure(role.requirement)
    pip = wheelhouse.best(Requirement(PIP))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    platform = sysconfig.get_platform()
    version = str(wheels[role.name].version)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as draft_name:
        draft = Path(draft_name) / "bundle"
        for folder in ("wheels", "tools", "units", "settings"):
            (draft / folder).mkdir(parents=True)
        for wheel in wheels.values():
            shutil.copyfile(wheel.path, draft / "wheels" / wheel.path.name)
        shutil.copyfile(pip.path, draft / "tools" / pip.path.name)
        for unit in sorted((ROOT / "deploy" / "systemd" / role.units).iterdir()):
            shutil.copyfile(unit, draft / "units" / unit.name)
        shutil.copyfile(HERE / "settings" / role.settings, draft / "settings" / role.settings)
        facts = {"ROLE": role.units, "NAME": role.name, "VERSION": version}
        facts |= {"PYTHON": python, "PLATFORM": platform, "SETTINGS": role.settings}
        for script in ("install.sh", "uninstall.sh"):
            (draft / script).write_text(_fill((HERE / script).read_text(), facts))
        (draft / "README.md").write_text((ROOT / "deploy" / "README.md").read_text())
        (draft / "LICENSE").write_bytes((ROOT / "LICENSE").read_bytes())
        (draft / "requirements.txt").write_text(requirements(wheels))
        bill = make_sbom(root=role.name, wheels={**wheels, "pip": pip})
        (draft / "sbom.cdx.json").write_bytes(bill)
        sign(draft, key)
        verify_bundle(draft, key.public_hex)
        bundle = out / f"{role.name}-{version}-{platform}-cp{python.replace('.', '')}"
        shutil.rmtree(bundle, ignore_errors=True)
        draft.rename(bundle)
    return bundle


def requirements(wheels: Mapping[str, Wheel]) -> str:
    """Every wheel by name, version and hash: pip installs these and nothing else."""
    lines = (f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in wheels.values())
    return "".join(lines)


def sign(folder: Path, key: SigningKey) -> None:
    """Writes SHA256SUMS of all files in `folder`, and its signature; sets the files' modes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = []
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
        path.chmod(0o755 if path.suffix == ".sh" else 0o644)
    sums = "".join(lines).encode()
    (folder / SUMS).write_bytes(sums)
    (folder / SIGNATURE).write_bytes(key.sign(DOMAIN + sums))


def _fill(script: str, facts: Mapping[str, str]) -> str:
    """The script with what this bundle is, and with the verifier inside."""
    for name, value in facts.items():
        script = script.replace(f"@{name}@", value)
    verifier = (HERE / "verify.py").read_text()
    return script.replace("@VERIFIER@\n", verifier)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program: prints the bundle's folder and the key to verify it with."""
    parser = argparse.ArgumentParser(prog="deploy.bundle.build", description=__doc__)
    parser.add_argument("--role", choices=sorted(ROLES))
    parser.add_argument("--out", type=Path, default=Path("dist"))
    parser.add_argument("--key", type=Path, required=True, help="Ed25519 key in PEM")
    parser.add_argument("--new-key", action="store_true", help="make the key, and nothing else")
    parser.add_argument(
        "--wheels",
        type=Path,
        action="append",
        help="a folder of wheels (default: the one that `make setup` filled)",
    )
    options = parser.parse_args(arguments)
    try:
        if options.new_key:
            if options.key.exists():
                raise BuildError(f"{options.key}: expected no file, found one")
            key = SigningKey.generate()
            write_private(options.key, key.to_pem())
            print(f"key {key.public_hex}")
            return 0
        if options.role is None:
            raise BuildError("--role: expected client or server, found nothing")
        role = ROLES[options.role]
        key = SigningKey.from_pem(options.key.read_bytes())
        folders = options.wheels or [Path(sys.prefix) / "wheelhouse"]
        constraints = read_constraints((ROOT / "constraints.txt").read_text())
        with tempfile.TemporaryDirectory() as own:
            build_own_wheels(role, Path(own))
            bundle = build_bundle(
                role,
                wheelhouse=Wheelhouse([Path(own), *folders], constraints),
                out=options.out,
                key=key,
            )
    except (BuildError, FedwardError, OSError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    print(f"bundle {bundle}\nkey {key.public_hex}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
