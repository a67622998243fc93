"""rules 17: the setting comes before grpc, and a start-up self-test proves that it holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedward_common.channel.credentials import TlsFiles, channel_options
from fedward_common.channel.tls import CIPHER_VARIABLE, TLS13_ONLY
from fedward_common.errors import ConfigError
from tests.support.pki import Authority, write_identity


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a fresh interpreter, in which nothing has imported grpc."""
    kept = {k: v for k, v in os.environ.items() if k != CIPHER_VARIABLE}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=kept | environment,
        check=False,
        timeout=60,
    )


def test_the_client_refuses_a_server_of_tls_1_2_when_the_setting_comes_first() -> None:
    done = python(
        "from fedward_common.channel.tls import require_tls13; require_tls13()\n"
        "from fedward_common.channel.credentials import prove_client; prove_client()"
    )

    assert done.returncode == 0, done.stderr


def test_the_self_test_fails_when_the_setting_is_missing() -> None:
    """The test of the test: plain grpcio accepts TLS 1.2."""
    done = python("from fedward_common.channel.credentials import prove_client; prove_client()")

    assert done.returncode != 0
    assert "expected TLS 1.2 to be refused, found TLSv1.2" in done.stderr


def test_a_process_that_imported_grpc_too_early_does_not_start() -> None:
    done = python(
        "import grpc\nfrom fedward_common.channel.tls import require_tls13; require_tls13()"
    )

    assert "StartError: channel: expected GRPC_SSL_CIPHER_SUITES before grpc" in done.stderr


def test_the_parent_may_have_set_it() -> None:
    done = python(
        "import grpc\nfrom fedward_common.channel.tls import require_tls13; require_tls13()",
        **{CIPHER_VARIABLE: TLS13_ONLY},
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["fedward_server.edge", "fedward_client.gateway"])
def test_importing_an_entry_point_does_not_import_grpc(package: str) -> None:
    done = python(f"import sys, {package}; sys.exit('grpc' in sys.modules)")

    assert done.returncode == 0, done.stderr


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    authority = Authority()
    write_identity(tmp_path, "site", authority.site_identity("alpha"), authority.root)
    (tmp_path / "site.key").chmod(0o640)
    files = TlsFiles(
        certificate=tmp_path / "site.pem", key=tmp_path / "site.key", ca=tmp_path / "root.pem"
    )

    with pytest.raises(ConfigError, match="expected a private key of mode 0600"):
        files.read()


def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    authority = Authority()
    write_identity(tmp_path, "site", authority.site_identity("alpha"), authority.root)
    files = TlsFiles(
        certificate=tmp_path / "gone.pem", key=tmp_path / "site.key", ca=tmp_path / "root.pem"
    )

    with pytest.raises(ConfigError, match=r"gone\.pem: expected a readable file"):
        files.read()


@pytest.mark.parametrize(
    ("host", "direct"),
    [("127.0.0.1", True), ("localhost", True), ("[::1]", True), ("hub.example", False)],
)
def test_a_proxy_is_never_asked_for_loopback(host: str, direct: bool) -> None:
    assert (("grpc.enable_http_proxy", 0) in channel_options(host, None)) is direct
