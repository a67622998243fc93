"""A federation that grows as a real one does: init, invite, enrol, grant, approve, by commands."""

import json
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedward_common.processes import offline_environment
from fedward_common.trust.private_files import write_private
from fedward_server.sandbox.layout import free_ports

FEDERATION = "north.example.org"
OPERATORS = ("Anna Berg", "Olav Dahl")
APPROVER = "Dr Ines Mohn"
WAIT_SECONDS = 90.0


@dataclass(kw_only=True)
class Joining:
    """Folders, programs and processes of one coordinator and its hospitals.

    `programs`: where `fedward-server` and `fedward-client` are, by name.
    """

    root: Path
    programs: Mapping[str, Path] = field(
        default_factory=lambda: {
            name: Path(sys.executable).parent / name
            for name in ("fedward-server", "fedward-client")
        }
    )
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Unix socket paths are limited to 107 bytes.
        self.run = Path(tempfile.mkdtemp(prefix="fedward-"))
        self.ports = free_ports(3)
        self.coordinator = self.root / "coordinator" / "coordinator.toml"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def site(self, name: str) -> Path:
        """Where a site's site.toml is."""
        return self.root / name / "site.toml"

    def ask(self, program: str, *arguments: object, given: str | None = None, code: int = 0) -> str:
        """What a command prints; it must end with `code`."""
        done = subprocess.run(
            [str(self.programs[program]), *map(str, arguments)],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            env=offline_environment(),
            timeout=180,
        )
        if done.returncode != code:
            words = " ".join(map(str, arguments[:3]))
            raise AssertionError(
                f"{program} {words}: exit code {done.returncode}, expected {code}\n"
                f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            )
        return done.stdout

    def server(self, *arguments: object, **options: Any) -> str:
        """A `fedward-server` command on the coordinator."""
        return self.ask("fedward-server", *arguments, "--config", self.coordinator, **options)

    def client(self, site: str, *arguments: object, **options: Any) -> str:
        """A `fedward-client` command at a site."""
        return self.ask("fedward-client", *arguments, "--config", self.site(site), **options)

    def start(self, name: str, program: str, *arguments: object) -> subprocess.Popen[bytes]:
        """A process that goes on; its output is in <root>/<name>.log."""
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(self.programs[program]), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=offline_environment(),
            )
        return self.processes[name]

    def found(self) -> None:
        """A federation with two operators, not started."""
        passphrase = self.root / "root.passphrase"
        write_private(passphrase, secrets.token_hex(20).encode() + b"\n")
        edge, enrolment, superlink = self.ports
        self.ask(
            "fedward-server",
            *("init", self.coordinator.parent, "--federation", FEDERATION, "--host", "localhost"),
            *("--root-folder", self.root / "usb", "--passphrase-file", passphrase),
            *("--listen-host", "127.0.0.1", "--port", edge, "--enrolment-port", enrolment),
            *("--run", self.run / "coordinator"),
        )
        text = self.coordinator.read_text()
        text = f"superlink_port = {superlink}\n{text}"
        for number, name in enumerate(OPERATORS):
            text += self.ask(
                "fedward-server", "operator", "new", name, "--key", self.operator_key(number)
            )
        self.coordinator.write_text(text)

    def operator_key(self, number: int) -> Path:
        """An operator's key file."""
        return self.root / f"operator-{number}.pem"

    def serve(self) -> None:
        """Starts the coordinator and waits until it is ready."""
        self.start("serve", "fedward-server", "serve", "--config", self.coordinator)
        self.wait((self.run / "coordinator" / "ready").exists, "the coordinator")

    def wait(self, ready: Callable[[], bool], what: str, *, seconds: float = WAIT_SECONDS) -> None:
        """Returns when `ready` says so."""
        limit = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > limit:
                raise AssertionError(f"waited {seconds:.0f} s for {what}; logs in {self.root}")
            time.sleep(0.2)

    def invite(self, site: str) -> Path:
        """The file of a fresh invite."""
        path = self.root / f"{site}.invite"
        self.server("site", "invite", site, "--out", path)
        return path

    def grant(self, site: str, *, words: str) -> None:
        """Both operators grant a request after they compared the words."""
        for number, name in enumerate(OPERATORS):
            self.server(
                *("site", "grant", site, "--operator", name),
                *("--key", self.operator_key(number), "--words", words),
            )

    def words(self, site: str) -> str:
        """The words of a waiting request, as the operators see them."""
        return str(json.loads(self.server("site", "review", site, "--json"))["words"])

    def has_request(self, site: str) -> bool:
        """Whether a hospital's request has come in."""
        listed = json.loads(self.server("site", "list", "--json"))
        return any(e["site"] == site and e["status"].startswith("waits") for e in listed)

    def enrol(self, site: str) -> None:
        """A hospital enrols over the network, while the operators grant."""
        places = ("--config", self.site(site), "--state", self.site(site).parent / "state")
        waiting = self.start(
            f"enrol-{site}",
            "fedward-client",
            *("enrol", "--invite-file", self.invite(site), "--run", self.run / site, *places),
        )
        self.wait(partial(self.has_request, site), f"the request of {site}")
        self.grant(site, words=self.words(site))
        if waiting.wait(timeout=WAIT_SECONDS) != 0:
            raise AssertionError((self.root / f"enrol-{site}.log").read_text())

    def enrol_carried(self, site: str) -> None:
        """A hospital enrols by two carried files."""
        request, answer = self.root / f"{site}.request.json", self.root / f"{site}.grant.json"
        places = ("--state", self.site(site).parent / "state", "--run", self.run / site)
        text = self.invite(site).read_text()
        self.client(site, "enrol", "--invite-file", "-", "--offline", request, *places, given=text)
        shown = json.loads(self.server("site", "import", request, "--json"))
        self.grant(site, words=shown["words"])
        self.server("site", "export", site, answer)
        self.client(site, "enrol", "--install", answer, *places)

    def decide(self, site: str, *, data: Path, rules: Mapping[str, object]) -> None:
        """What the hospital's people write into site.toml: the table, a person, the limits."""
        approver = self.ask(
            "fedward-client", "approver", "new", APPROVER, "--key", self.approver_key(site)
        )
        gateway, runtime = free_ports(2)
        text = self.site(site).read_text().replace("/path/to/patients.csv", str(data))
        for name, value in rules.items():
            text, changes = re.subn(
                rf"^{name} = .*$", f"{name} = {json.dumps(value)}", text, flags=re.MULTILINE
            )
            if not changes:
                text += f"{name} = {json.dumps(value)}\n"
        text += f"\n{approver}\n[ports]\ngateway = {gateway}\nruntime = {runtime}\n"
        self.site(site).write_text(text)

    def approver_key(self, site: str) -> Path:
        """The key file of a hospital's approver."""
        return self.root / f"{site}-approver.pem"

    def says(self, site: str, *command: object) -> str:
        """A command that the hospital's approver signs."""
        return self.client(site, *command, "--approver", APPROVER, "--key", self.approver_key(site))

    def run_site(self, site: str) -> None:
        """Starts a hospital and waits until its guard answers."""
        self.start(site, "fedward-client", "run", "--config", self.site(site))
        self.wait((self.run / site / "admin.sock").exists, f"the guard of {site}")

    def lines(self, log: Path) -> Sequence[dict[str, Any]]:
        """The events of a hash-chained log."""
        return [json.loads(line) for line in log.read_text().splitlines()]
