"""Where the code-free Flower bundle and the example studies are: in the wheel or the checkout."""

from pathlib import Path

from fedward_common.errors import StartError

PACKAGE = Path(__file__).parent


def _installed(packaged: str, checkout: str) -> Path:
    for folder in (PACKAGE / packaged, PACKAGE.parent.parent / "deploy" / checkout):
        if folder.is_dir():
            return folder
    raise StartError(
        f"installation: expected the folder {packaged!r} in the package, found none. "
        "Install fedward-server again"
    )


def bundle_folder() -> Path:
    """The folder of the code-free bundle that coordinator and sites agree on by its SHA-256."""
    return _installed("flower_bundle", "flower-app")


def studies_folder() -> Path:
    """The folder of the example studies."""
    return _installed("studies", "studies")
