"""A real enrolment listener: own process, real sockets, a real registry and two operators."""

import contextlib
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel import channel_pb2_grpc as stubs
from fedward_common.log.events import read_events
from fedward_common.processes import port_open
from fedward_common.trust.enrolment import EnrolmentRequest, Invite
from fedward_common.trust.private_files import MIN_PASSPHRASE
from fedward_server.adapters.registry import SqlRegistry, open_registry
from fedward_server.init import NewFederation, init_federation
from fedward_server.operators import new_operator
from fedward_server.settings import CoordinatorSettings, load_coordinator_settings
from fedward_server.site_commands import Operator, grant_site, invite_site, review_site
from tests.support.edge_process import clean_environment, free_port, wait_until
from tests.support.enrolling import NewSite
from tests.support.pki import FEDERATION, now

OPERATORS = ("Ada", "Ben")


def patient(call: Callable[[], Any]) -> Any:
    reply = call()
    while reply.error_code == "rate":
        time.sleep(1)
        reply = call()
    return reply


@dataclass
class Listener:
    """A coordinator that hospitals may join."""

    settings: CoordinatorSettings
    folder: Path
    registry: SqlRegistry = field(init=False)

    def __post_init__(self) -> None:
        self.registry = open_registry(self.settings.database)

    @property
    def port(self) -> int:
        return int(str(self.settings.enrolment.listen).rpartition(":")[2])

    @property
    def root_pem(self) -> bytes:
        return self.settings.tls.ca.read_bytes()

    def operator(self, name: str) -> Operator:
        return Operator(name=name, key_file=self.folder / f"{name}.pem")

    def invite(self, site: str) -> Invite:
        """A new invite, once the port is open."""
        made = Invite.parse(invite_site(self.settings, site, out=None))
        wait_until(lambda: port_open(self.port))
        return made

    def grant(self, site: str) -> None:
        for name in OPERATORS:
            heard = review_site(self.settings, site)["words"]
            grant_site(self.settings, site, self.operator(name), compared=heard)

    def output(self) -> str:
        """What the process has written on stdout and stderr."""
        return (self.folder / "listener.out").read_text()

    def channel(self, root_pem: bytes | None = None) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(root_pem or self.root_pem)
        options = [("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)]
        return grpc.secure_channel(f"localhost:{self.port}", credentials, options)

    @contextlib.contextmanager
    def stub(self, root_pem: bytes | None = None) -> Iterator[stubs.FedwardEnrolmentStub]:
        with self.channel(root_pem) as channel:
            yield stubs.FedwardEnrolmentStub(channel)

    def submit(self, token: str, data: bytes, **call: Any) -> wire.SubmitReply:
        """The answer; all tests come from one address, so one that was too fast asks again."""
        request = wire.SubmitRequest(token=token, request=data)
        with self.stub(**call) as stub:
            reply: wire.SubmitReply = patient(lambda: stub.Submit(request, timeout=20))
            return reply

    def fetch(
        self, site: NewSite, request: EnrolmentRequest, *, at: int | None = None
    ) -> wire.FetchReply:
        moment = int(now().timestamp()) if at is None else at
        with self.stub() as stub:
            asked = wire.FetchRequest(
                request_sha256=request.sha256,
                time=moment,
                signature=site.fetch_signature(request, moment),
            )
            reply: wire.FetchReply = patient(lambda: stub.Fetch(asked, timeout=20))
            return reply

    def logged(self, action: str, **fields: object) -> bool:
        """Whether one of the two logs has such an event; waits a little for it."""

        def found() -> bool:
            return any(
                event.action == action and fields.items() <= event.fields.items()
                for path in (self.settings.desk_log, self.settings.enrolment_log)
                for event in read_events(path)
            )

        with contextlib.suppress(AssertionError):
            wait_until(found, seconds=5)
        return found()


def new_coordinator(folder: Path) -> CoordinatorSettings:
    """A coordinator on loopback as `init` and `operator new` make it."""
    made = init_federation(
        NewFederation(
            folder=folder / "hub",
            federation=FEDERATION,
            host="localhost",
            root_folder=folder / "usb",
            root_passphrase=b"x" * MIN_PASSPHRASE,
            listen_host="127.0.0.1",
            port=free_port(),
            enrolment_port=free_port(),
        ),
        now=now(),
    )
    path = Path(made["settings"])
    with path.open("a") as file:
        file.writelines(new_operator(name, folder / f"{name}.pem") for name in OPERATORS)
    return load_coordinator_settings(path)


@contextlib.contextmanager
def running_listener(folder: Path) -> Iterator[Listener]:
    """The listener's process, started as `serve` starts it."""
    settings = new_coordinator(folder)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from fedward_server.enrolment.process import run_enrolment_listener\n"
        "from fedward_server.settings import load_coordinator_settings\n"
        "run_enrolment_listener(load_coordinator_settings(Path(sys.argv[1])))\n"
    )
    with (folder / "listener.out").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder / "hub" / "coordinator.toml")],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=clean_environment(),
        )
    listener = Listener(settings, folder)
    try:
        wait_until(lambda: settings.enrolment_log.exists() or process.poll() is not None)
        if process.poll() is not None:
            raise AssertionError((folder / "listener.out").read_text())
        yield listener
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        listener.registry.close()


def served_chain(port: int) -> list[bytes]:
    """The certificates (DER) that the listener shows to whoever connects, root included."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
        context.wrap_socket(connection) as channel,
    ):
        found = channel._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
        return [ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in found]
