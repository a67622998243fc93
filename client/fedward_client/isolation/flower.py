"""How SuperNode and worker are started: by `run`, or alone by a service unit of their own."""

import os
import sys
from pathlib import Path
from typing import Final, NoReturn

from fedward_client.adapters.key_files import is_encrypted, read_node_key, read_passphrase
from fedward_client.settings import SiteSettings
from fedward_common.errors import StartError
from fedward_common.processes import offline_environment

SETTINGS_VARIABLE: Final = "FEDWARD_SITE_SETTINGS"
TASK_POLL_SECONDS: Final = "0.01"
"""Flower's least. SuperNode holds the worker's question open, so it is asked every few seconds."""
SECRET: Final = "superexec.secret"  # noqa: S105 - a file name
LOOPBACK_CA: Final = "ca.pem"


def node_home(settings: SiteSettings) -> Path:
    """SuperNode's own folder."""
    return settings.folders.state / "flower"


def worker_home(settings: SiteSettings) -> Path:
    """The worker's own folder: what the code-free bundle is unpacked to, never a record."""
    return settings.folders.state / "flower-worker"


def loopback_folder(settings: SiteSettings) -> Path:
    """The gateway's identity on loopback; SuperNode reads its root only."""
    return settings.folders.state / "loopback"


def node_secret(settings: SiteSettings) -> Path:
    """What SuperNode's Runtime interface asks of a worker."""
    return node_home(settings) / SECRET


def worker_secret(settings: SiteSettings) -> Path:
    """The same secret, where the worker may read it."""
    return worker_home(settings) / SECRET


def supernode_command(settings: SiteSettings, *, node_key: Path) -> tuple[str, ...]:
    """Flower's SuperNode: `node_key` is the unencrypted file that it reads."""
    return (
        *(sys.executable, "-m", "fedward_client.adapters.flower_supernode"),
        *("--superlink", f"127.0.0.1:{settings.ports.gateway}"),
        *("--root-certificates", str(loopback_folder(settings) / LOOPBACK_CA)),
        *("--auth-supernode-private-key", str(node_key)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(node_secret(settings))),
        *("--host", "127.0.0.1", "--port", str(settings.ports.runtime)),
    )


def supernode_environment(settings: SiteSettings) -> dict[str, str]:
    """What SuperNode's environment needs besides `offline_environment`."""
    return {"FLWR_HOME": str(node_home(settings))}


def worker_environment(settings: SiteSettings) -> dict[str, str]:
    """What the worker's environment needs besides `offline_environment`."""
    return {
        "FLWR_HOME": str(worker_home(settings)),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": TASK_POLL_SECONDS,
        SETTINGS_VARIABLE: str(settings.source),
        "OMP_NUM_THREADS": "1",
        # Training frees and takes tensors of many megabytes all the time: glibc's own upper ends.
        "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        # Kernels that oneDNN made stay made: DenseNet121 has 360 for each number of records, and
        # made again and again (beyond 1,024) they took two fifths of a step.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8192",
    }


def exec_supernode(settings: SiteSettings) -> NoReturn:
    """Makes this process SuperNode: what a service unit of its own starts.

    A node key that is encrypted is opened into memory that only this process has.

    Raises:
        ConfigError: the node key is not in order.
        StartError: Flower is not installed.
    """
    path = settings.keys.node_key
    key = read_node_key(path, passphrase=read_passphrase(settings.keys.passphrase_file))
    if is_encrypted(path):
        opened = os.memfd_create("node.key", 0)
        os.write(opened, key.to_openssh())
        path = Path(f"/proc/self/fd/{opened}")
    command = supernode_command(settings, node_key=path)
    try:
        os.execvpe(command[0], command, offline_environment() | supernode_environment(settings))  # noqa: S606
    except OSError as error:
        raise StartError(
            f"SuperNode: expected to find the program {command[0]}, found {error.strerror}. "
            "Install Fedward's dependencies again"
        ) from error
