"""A model plugin as a package that somebody installs: one folder and its dist-info."""

from pathlib import Path

MODEL = "tiny-net"
PACKAGE = "hospital-tiny-net"
CODE = """
import torch
from torch import nn


def build(spec, inputs):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("linear", nn.Linear(inputs, 1))
    return nn.Sequential(model, nn.Flatten(0))
"""
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
ENTRY_POINTS = "[fedward.models]\n{model} = {module}.models:build\n"


def install(
    folder: Path,
    *,
    module: str = "hospital_tiny_net",
    name: str = PACKAGE,
    version: str = "1.0",
    model: str = MODEL,
    code: str = CODE,
) -> Path:
    """Writes the package and its metadata into `folder`; the package's own folder."""
    package = folder / module
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(code)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA.format(name=name, version=version))
    (info / "entry_points.txt").write_text(ENTRY_POINTS.format(model=model, module=module))
    # As a careless or a hostile package would: RECORD names one of its files only.
    (info / "RECORD").write_text(f"{module}/__init__.py,,0\n")
    return package
