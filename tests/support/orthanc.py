"""A real PACS for tests: Debian's Orthanc with its DICOMweb plugin, on loopback, gone afterwards.

Import the fixture where it is needed:

    from tests.support.orthanc import orthanc  # noqa: F401
"""

import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedward_server.sandbox.layout import free_ports

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SITE_AE = "FEDWARD"
START_SECONDS = 60.0


def missing() -> str | None:
    """What is not installed here, in words; None where everything is."""
    if shutil.which("Orthanc") is None or not PLUGIN.exists():
        return "needs Orthanc with DICOMweb: make ci-deps installs Debian's"
    return None


@dataclass(frozen=True, kw_only=True)
class Orthanc:
    """A running PACS: its DICOMweb address, its DIMSE port, and where it connects back to."""

    url: str
    dimse_port: int
    back_port: int


@pytest.fixture(scope="session")
def orthanc() -> Iterator[Orthanc]:
    """A PACS for the session; skipped where Orthanc or its plugin is not installed."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    http, dimse, back = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="orthanc-") as folder:
        config = {
            "StorageDirectory": folder,
            "IndexDirectory": folder,
            "HttpPort": http,
            "DicomPort": dimse,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowMove": True,
            "DicomAlwaysAllowFind": True,
            "DicomModalities": {"site": [SITE_AE, "127.0.0.1", back]},
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        path = Path(folder) / "orthanc.json"
        path.write_text(json.dumps(config))
        process = subprocess.Popen(
            ["Orthanc", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            _wait(f"http://127.0.0.1:{http}/system", process)
            yield Orthanc(
                url=f"http://127.0.0.1:{http}/dicom-web", dimse_port=dimse, back_port=back
            )
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < until:
        try:
            with opener.open(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                break
            time.sleep(0.2)
    raise RuntimeError("Orthanc: expected it to answer on loopback, found that it does not")
