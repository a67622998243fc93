"""What a federation left behind that it should not have: processes, drafts of files."""

import os
from pathlib import Path

from fedward_common.trust.private_files import DRAFT


def left_behind(folder: Path) -> list[str]:
    """Command lines that still name the federation's folder."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in command and path.parent.name != str(os.getpid()):
            commands.append(command)
    return commands


def litter(folder: Path) -> list[str]:
    """Files under `folder` that were to be moved into place and never were."""
    return [str(path) for path in folder.rglob(".*") if DRAFT.fullmatch(path.name)]
