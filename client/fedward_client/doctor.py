"""`fedward-client doctor`: whether this hospital's side is in order before (and while) it runs.

Nothing is changed, nothing is sent but a TLS handshake with the coordinator, and no value of a
patient, a key or an environment variable is in what it says.
"""

import base64
import csv
import ipaddress
import os
import pwd
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from fedward_client.adapters.key_files import read_private, read_signing_key
from fedward_client.adapters.sqlite_ledger import LedgerFile, ledger_exists
from fedward_client.data.tabular import CsvSource
from fedward_client.guard.main import noted_head
from fedward_client.policy import SitePolicy
from fedward_client.settings import CsvFile, SiteSettings, load_site_settings
from fedward_common import doctor as shared
from fedward_common.doctor import Examination, Finding, IdentityFiles, fail, ok, warn
from fedward_common.errors import (
    ChannelError,
    ConfigError,
    FedwardError,
    LedgerError,
    PolicyRefused,
)
from fedward_common.ids import SiteId
from fedward_common.privacy.ledger import Head
from fedward_common.processes import offline_environment, socket_open
from fedward_common.study.encoding import TablePart
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.trust.certificates import NodeKey, parse_peer_certificate
from fedward_common.trust.signing import key_sha256

GIB: Final = 1 << 30
PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
"""Where grpc looks for a proxy, in its order; it reads lower-case names only."""
NAME_MISMATCH: Final = (62, 64)
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
EXPIRED: Final = (9, 10)
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


def examine_site(config: Path, *, study: Path | None = None) -> Examination:
    """Everything that `doctor` finds about the site of `config`, and about a signed study for it.

    A settings file that cannot be read is a finding like any other.
    """
    try:
        settings = load_site_settings(config)
    except ConfigError as error:
        found = fail("settings", str(error), f"Correct {config}")
        return Examination(subject=str(config), findings=(found,))
    return Examination(
        subject=f"site {settings.site} ({config})", findings=tuple(_all(settings, study))
    )


def _all(settings: SiteSettings, study: Path | None) -> Iterator[Finding]:
    environment = offline_environment()
    yield ok("settings", f"{settings.source}: read, every key known")
    yield from _keys(settings)
    yield from _certificates(settings)
    yield from _network(settings, environment)
    yield from _machine(settings, environment)
    yield shared.event_log("journal", settings.audit_path)
    yield ledger("ledger", settings)
    for number, table in enumerate(settings.data, start=1):
        yield data_source(f"data.{number}", table)
    if study is not None:
        yield from _study(settings, study)


def _keys(settings: SiteSettings) -> Iterator[Finding]:
    """Permissions and owner of each private key, and whether it is a key of the right kind."""
    keys, ours = settings.keys, {os.geteuid()}
    gateway = ours | _user_ids(settings)
    yield shared.key_file("key.tls", keys.tls_key, owners=gateway)
    for name, path, owners in (
        ("key.signing", keys.signing_key, ours),
        ("key.node", keys.node_key, gateway),
    ):
        finding = shared.key_file(name, path, owners=owners)
        if finding.level == "ok" and path.lstat().st_uid == os.geteuid():
            try:
                if name == "key.signing":
                    read_signing_key(path)
                else:
                    NodeKey.from_openssh(read_private(path))
            except ConfigError as error:
                finding = fail(name, f"{path}: {error}", "Put the site's own key there, or enrol")
        yield finding


def _user_ids(settings: SiteSettings) -> set[int]:
    """The user ids that [guard] names; one that does not exist is left to the guard's own check."""
    names = {settings.guard.worker_user, settings.guard.gateway_user}
    return {one.pw_uid for one in pwd.getpwall() if one.pw_name in names}


def _certificates(settings: SiteSettings) -> Iterator[Finding]:
    files = _identity(settings)
    expiry = shared.certificate_expiry("certificate.expiry", files, now=datetime.now(UTC))
    late = expiry.level == "fail"
    yield expiry
    yield shared.certificate_chain("certificate.chain", files, role="site", expired=late)
    yield certificate_name("certificate.name", settings)


def certificate_name(name: str, settings: SiteSettings) -> Finding:
    """Whether the certificate names this site of this federation."""
    path = settings.keys.tls_certificate
    try:
        peer = parse_peer_certificate(path.read_bytes())
    except OSError as error:
        return fail(name, f"{path}: {error.strerror}", "Correct keys.tls_certificate")
    except ChannelError as error:
        return fail(name, f"{path}: {error}", "Put this site's certificate there")
    if (peer.site_id, peer.federation) != (settings.site, settings.federation):
        return fail(
            name,
            f"{path}: of {peer.site_id} in {peer.federation}; the settings say {settings.site} in "
            f"{settings.federation}",
            "Put this site's certificate there, or correct site and federation",
        )
    return ok(name, f"{peer.site_id} in {peer.federation}")


def _identity(settings: SiteSettings) -> IdentityFiles:
    keys = settings.keys
    return IdentityFiles(certificate=keys.tls_certificate, key=keys.tls_key, root=keys.ca)


def _network(settings: SiteSettings, environment: Mapping[str, str]) -> Iterator[Finding]:
    host, _, port = settings.coordinator.address.rpartition(":")
    target = Target(host=host, port=int(port), server_name=settings.coordinator.server_name or host)
    yield proxies("proxy", target, environment)
    yield reachable("coordinator", target, _identity(settings), environment=environment)
    root, ports = settings.folders.state / "loopback" / "ca.pem", settings.ports
    yield shared.loopback_port(
        "port.gateway",
        ports.gateway,
        key="ports.gateway",
        ours=lambda: shared.shows_certificate_of(ports.gateway, root),
    )
    # SuperNode's port shows nothing of its own: it counts as ours while this site's guard answers.
    yield shared.loopback_port(
        "port.runtime",
        ports.runtime,
        key="ports.runtime",
        ours=lambda: socket_open(settings.gateway_socket),
    )
    yield shared.network_separation(
        "network",
        interfaces=shared.read_interfaces(),
        strangers=shared.read_strangers(ours={os.geteuid()} | _user_ids(settings)),
    )


def _machine(settings: SiteSettings, environment: Mapping[str, str]) -> Iterator[Finding]:
    group = settings.guard.group is not None
    yield shared.private_folder("folder.state", settings.folders.state)
    yield shared.private_folder("folder.run", settings.folders.run, group=group)
    yield shared.socket_paths("sockets", (settings.worker_socket, settings.gateway_socket))
    quota = settings.guard.reply_quota_bytes
    yield shared.disk("disk", settings.folders.state, fails_below=GIB // 4, warns_below=quota + GIB)
    yield shared.memory("memory", shared.read_meminfo(), fails_below=GIB, warns_below=4 * GIB)
    yield shared.telemetry("telemetry", environment)
    yield shared.program("flower-supernode", environment)
    yield from shared.versions("fedward-client", "fedward-common")
    yield computing("computing", device=settings.device)


def computing(name: str, *, device: str) -> Finding:
    """Whether torch computes on the device that the settings name."""
    try:
        # Seconds to load: only when it is asked for.
        import torch  # noqa: PLC0415
    except ImportError as error:
        return fail(name, f"torch does not load: {type(error).__name__}", "Install torch again")
    if device == "cpu":
        return ok(name, f"torch {torch.__version__} on the CPU, as configured")
    if not torch.cuda.is_available():
        return fail(
            name,
            f'device = "{device}", but torch {torch.__version__} finds no CUDA device',
            'Set device = "cpu", or install the driver and a CUDA build of torch',
        )
    return ok(name, f"torch {torch.__version__} on {torch.cuda.get_device_name()}")


def ledger(name: str, settings: SiteSettings) -> Finding:
    """Whether the budget ledger is whole and not behind what the journal noted of it."""
    path = settings.ledger_path
    restore = "Restore ledger and mark from the newest copy; never start a new ledger"
    try:
        noted = noted_head(settings)
    except LedgerError:
        noted = Head()  # the journal has a finding of its own
    if not ledger_exists(path):
        if noted.seq:
            return fail(name, f"{path}: the journal speaks of a ledger, there is none", restore)
        return ok(name, "none yet")
    try:
        file = LedgerFile(path)
        try:
            head, row = file.head, file.row_hash(noted.seq)
        finally:
            file.close()
    except LedgerError as error:
        return fail(name, str(error), restore)
    if noted.seq and row != noted.sha256:
        return fail(name, f"{path}: row {noted.seq} is not as the journal noted it", restore)
    return ok(name, f"{head.seq} rows, chain unbroken, mark and journal agree")


def data_source(name: str, table: CsvFile) -> Finding:
    """Whether the table can be read and has a header; whether it fits is a study's question."""
    path = table.path
    try:
        way = [
            path.stat().st_mode & 0o004,
            *(above.stat().st_mode & 0o001 for above in path.parents),
        ]
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=table.delimiter, strict=True)
            header = next((row for row in rows if row), None)
    except OSError as error:
        return fail(name, f"{error.strerror}", "Correct path in this [[data]], or its rights")
    except (UnicodeDecodeError, csv.Error):
        return fail(name, "no CSV text in UTF-8", "Save the table as CSV in UTF-8")
    if header is None:
        return fail(name, "empty", "Put in a header line and one line per record")
    if all(way):
        found = "every user of this host may read the patients' table"
        return warn(name, found, "Run: chmod o-rwx on the file of this [[data]]")
    return ok(name, f"readable, {len(header)} columns")


def _study(settings: SiteSettings, path: Path) -> Iterator[Finding]:
    """Whether the study is signed, names this site with its keys, is allowed and fits the data."""
    try:
        study = SignedStudy.parse(path.read_bytes()).verify()
    except OSError as error:
        yield fail("study", f"{path}: {error.strerror}", "Name the signed study (JSON)")
        return
    except FedwardError as error:
        yield fail("study", f"{path}: {error}", "Get the signed study again from its lead")
        return
    yield ok("study", f"{study.id} {study.digest[:16]}..., signature holds")
    yield study_keys("study.keys", settings, study)
    yield study_policy("study.policy", settings, study)
    parts: tuple[TablePart, ...] = ("train", "test") if study.releases else ("train",)
    for part in parts:
        yield study_data(f"study.data.{part}", settings, study, part=part)


def study_keys(name: str, settings: SiteSettings, study: StudySpec) -> Finding:
    """Whether the study names this site with the keys it has."""
    entry = study.site(SiteId(settings.site))
    if entry is None:
        return fail(name, f"{settings.site} is not in the study", "Ask the lead to include it")
    try:
        signing = key_sha256(read_signing_key(settings.keys.signing_key).public_hex)
        node = NodeKey.from_openssh(settings.keys.node_key.read_bytes()).sha256
    except (ConfigError, OSError):
        return fail(name, "not compared: this site's keys are not in order", "Mend them first")
    if (signing, node) != (entry.key_sha256, entry.node_key_sha256):
        fix = "Send the lead this site's present public keys; the study must be signed again"
        return fail(name, f"the study names other keys for {settings.site}", fix)
    return ok(name, "the study names this site's signing key and node key")


def study_policy(name: str, settings: SiteSettings, study: StudySpec) -> Finding:
    """Whether the site's policy allows the study today."""
    try:
        SitePolicy.of(settings).permits(study)
    except PolicyRefused as error:
        return warn(
            name,
            " ".join(str(error).split()),
            "Decide: approve the study in [policy] of the settings, or decline it",
        )
    return ok(name, "allowed by [policy]")


def study_data(name: str, settings: SiteSettings, study: StudySpec, *, part: TablePart) -> Finding:
    """Whether every row of `part` fits the study's schema; columns and rules, never a value."""
    try:
        CsvSource(settings.data).checked_records(study, part=part)
    except FedwardError as error:
        return fail(
            name,
            str(error),
            "Mend the data. A patient whose rows do not fit would count as absent in the study",
        )
    return ok(name, "every row fits the study's schema")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where the edge is: `server_name` is the name that must be in its certificate."""

    host: str
    port: int
    server_name: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def reachable(
    name: str, target: Target, files: IdentityFiles, *, environment: Mapping[str, str]
) -> Finding:
    """Whether the edge answers over TLS 1.3 with a certificate of the pinned root and takes ours.

    A certificate of somebody else is an intercepting proxy or another machine: its issuer is named.
    """
    if not 1 <= target.port <= 65535:
        return fail(name, f"{target}: no such port", "Correct coordinator.address")
    proxy, context = proxy_for(target.host, environment), shared.tls13_client()
    context.check_hostname = True
    try:
        context.load_verify_locations(files.root)
        context.load_cert_chain(files.certificate, files.key, password=shared.no_password)
    except (OSError, ValueError):
        return fail(name, "not tried: the certificates are not in order", "Mend them first")
    allow = f"Ask the network team to pass {target} through unopened; ask the operator if it runs"
    try:
        with _channel(target, proxy, context) as channel:
            return _answer(name, target, channel)
    except ssl.SSLCertVerificationError as error:
        return fail(name, *_foreign(target, error, proxy=proxy))
    except ssl.SSLError as error:
        found = f"{shared.ssl_reason(error)} instead of TLS 1.3, issuer {_issuer(target, proxy)}"
        return fail(name, f"{target}: {found}", allow)
    except (socket.gaierror, ValueError):
        return fail(name, f"{target}: the name is not known here", "Check the address and DNS")
    except OSError as error:
        return fail(name, f"{target}: {error.strerror or error}", allow)


def _answer(name: str, target: Target, channel: ssl.SSLSocket) -> Finding:
    # TLS 1.3: whether the peer takes our certificate is only known from what comes next.
    try:
        data, reason = channel.recv(1), "connection closed"
    except TimeoutError:
        fix = "Check that the address is the edge of the federation"
        return warn(name, f"{target}: right certificate, but it says nothing", fix)
    except OSError as error:  # ssl.SSLError included
        data, reason = b"", shared.ssl_reason(error)
    if not data:
        fix = "Ask the operator: its log says why. An expired certificate needs a new one"
        return fail(name, f"{target}: it refuses this site's certificate ({reason})", fix)
    return ok(name, f"{target}: {channel.version()}, pinned root, takes this site's certificate")


def _foreign(
    target: Target, error: ssl.SSLCertVerificationError, *, proxy: str | None
) -> tuple[str, str]:
    """What was found and how to fix it, when the coordinator shows a certificate we do not take."""
    if error.verify_code in NAME_MISMATCH:
        return (
            f"{target}: a certificate of the federation, but not for {target.server_name}",
            "Set coordinator.server_name to the name in it, or correct the address",
        )
    if error.verify_code in EXPIRED:
        return (
            f"{target}: {error.verify_message}",
            "Check this machine's clock; if it is right, the operator must renew the certificate",
        )
    return (
        f"{target}: a certificate issued by {_issuer(target, proxy)}, not under the pinned root",
        "If that is your network's TLS inspection, ask for a no-decrypt rule for this address; "
        "otherwise the address is wrong, or somebody is in between. Never add it to the trust",
    )


def _issuer(target: Target, proxy: str | None) -> str:
    """The issuer of the certificate that `target` shows, from a second look that trusts nothing."""
    look = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    look.check_hostname, look.verify_mode = False, ssl.CERT_NONE
    try:
        with _channel(target, proxy, look) as channel:
            shown = channel.getpeercert(binary_form=True) or b""
        # Python decodes only a certificate that was verified: this one is made its own anchor.
        look.load_verify_locations(cadata=shown)
        look.verify_mode = ssl.CERT_REQUIRED
        partial = int(ssl.VERIFY_X509_PARTIAL_CHAIN) | shared.NO_CHECK_TIME
        look.verify_flags = ssl.VerifyFlags(int(look.verify_flags) | partial)
        with _channel(target, proxy, look) as channel:
            issuer: Any = (channel.getpeercert() or {}).get("issuer", ())
    except (OSError, ValueError):
        return "an unknown issuer"
    names = dict(pair for one in issuer for pair in one)
    parts = [names[key] for key in ("organizationName", "commonName") if key in names]
    return repr("".join(c for c in ", ".join(parts)[:128] if c.isprintable()))


@contextmanager
def _channel(target: Target, proxy: str | None, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with (
        _connect(target, proxy) as raw,
        context.wrap_socket(raw, server_hostname=target.server_name) as channel,
    ):
        yield channel


def _connect(target: Target, proxy: str | None) -> socket.socket:
    """A TCP connection to `target`, through the proxy where there is one (HTTP CONNECT)."""
    if proxy is None:
        return socket.create_connection((target.host, target.port), timeout=shared.PROBE_SECONDS)
    url = urlsplit(proxy)
    if url.scheme != "http" or not url.hostname:
        raise OSError("the proxy variable holds no http:// address")
    raw = socket.create_connection((url.hostname, url.port or 80), timeout=shared.PROBE_SECONDS)
    ask = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if url.username is not None:
        login = f"{unquote(url.username)}:{unquote(url.password or '')}".encode()
        ask += f"Proxy-Authorization: Basic {base64.b64encode(login).decode()}\r\n"
    raw.sendall(ask.encode() + b"\r\n")
    head = b""
    while b"\r\n\r\n" not in head and len(head) < 8192:
        # One byte at a time: what follows belongs to TLS.
        if not (more := raw.recv(1)):
            break
        head += more
    if not re.match(rb"HTTP/1\.[01] 2\d\d ", head):
        raw.close()
        raise OSError("refused by the proxy")
    return raw


def proxy_for(host: str, environment: Mapping[str, str]) -> str | None:
    """The proxy that grpc uses for `host` in this environment: it reads lower-case names only."""
    proxy = next((environment[name] for name in PROXY_VARIABLES if environment.get(name)), None)
    bypass = environment.get("no_grpc_proxy") or environment.get("no_proxy", "")
    return None if proxy is None or _is_loopback(host) or _bypassed(host, bypass) else proxy


def proxies(name: str, target: Target, environment: Mapping[str, str]) -> Finding:
    """Whether a proxy stands before the coordinator, and whether someone thinks it does not."""
    names = sorted(
        key
        for key, value in environment.items()
        if key.lower() in (*PROXY_VARIABLES, "all_proxy") and value
    )
    if proxy_for(target.host, environment) is not None:
        ignored = _bypassed(target.host, environment.get("NO_PROXY", ""))
        note = ", although NO_PROXY names it: grpc reads no_proxy only" if ignored else ""
        return warn(
            name,
            f"{', '.join(names)}: the gateway reaches {target} by proxy{note}",
            "Start Fedward without these variables, or have the proxy pass this address unopened",
        )
    if names:
        return ok(name, f"{', '.join(names)}: not used for {target}")
    return ok(name, "no proxy variable is set")


def _bypassed(host: str, bypass: str) -> bool:
    """Whether grpc leaves the proxy out for `host`: names with all below them, address ranges."""
    for entry in filter(None, (part.strip() for part in bypass.split(","))):
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:  # a name, not an address
            if f".{host}".endswith(f".{entry.lstrip('.')}"):
                return True
    return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
