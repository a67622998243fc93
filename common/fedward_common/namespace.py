"""A network namespace with nothing but loopback, for processes that must not reach the network.

Rules 15: what listens in it (Flower's Runtime, Control and Fleet interfaces) is reached by nobody
outside, and what runs in it reaches no address. A process without root's rights makes it inside a
user namespace in which it stays the same user, so that file owners and SO_PEERCRED stay right.

A Unix socket in a folder belongs to no network. Behind those of the host's resolver, name cache and
message bus, which are everybody's, somebody asks the network on a process's behalf: a name to look
up is a letter. So their folders are empty for whoever enters.
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Final, Literal, NoReturn, Self

from fedward_common.errors import StartError
from fedward_common.study.registry import Strict

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 1
LISTEN: Final = "0A"
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REC: Final = 0x4000
MS_SLAVE: Final = 0x80000
SERVICES: Final = ("/run/systemd/resolve", "/run/dbus", "/run/nscd", "/run/avahi-daemon")
"""Folders of sockets by which the host looks names up for every user."""
HIDES: Final = b"+"

_libc = ctypes.CDLL(None, use_errno=True)


class IsolationSettings(Strict):
    """`[isolation]` of site.toml and coordinator.toml.

    `network`: `auto` gives Flower's processes a network namespace of their own where the kernel
    allows one, and the log says so where it does not; `required` refuses to start without;
    `none` leaves it to the service manager or to nobody.
    """

    network: Literal["auto", "required", "none"] = "auto"


class PrivateNetwork:
    """A network namespace that lives as long as this value or a process in it."""

    def __init__(self, *, network: int, user: int | None, hides: bool = False) -> None:
        """Takes over the descriptors of the namespace and of its user namespace, if it has one.

        `hides` says whether the kernel lets whoever enters hide the folders of `SERVICES`.
        """
        self._network = network
        self._user = user
        self.hides_services = hides

    @classmethod
    def create(cls) -> Self:
        """A new namespace in which loopback is up and nothing else is there.

        Raises:
            StartError: this system has or allows none; says why.
        """
        if sys.platform != "linux":
            raise StartError("private network: expected Linux, found another system")
        answer, tell = os.pipe()
        hold, release = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(release)
            _make(tell, hold)
        os.close(tell)
        os.close(hold)
        try:
            said = os.read(answer, 64)
            kind, hides = said.removesuffix(HIDES), said.endswith(HIDES)
            if kind not in (b"root", b"user"):
                reason = os.strerror(int(said)) if said.isdigit() else "no answer"
                raise StartError(
                    f"private network: expected the kernel to allow one, found {reason}. Start as "
                    "root, allow user namespaces, or set network in [isolation]"
                )
            try:
                network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
                user = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY) if kind == b"user" else None
            except OSError as error:
                raise StartError(
                    f"private network: expected to open it, found {error.strerror}"
                ) from error
        finally:
            os.close(answer)
            os.close(release)
            os.waitpid(pid, 0)
        return cls(network=network, user=user, hides=hides)

    def enter(self) -> None:
        """Moves this process into it; called between fork and exec, before any change of user.

        Raises:
            OSError: the kernel refuses; the process must end then.
        """
        if self._user is not None:
            _check(_libc.setns(self._user, CLONE_NEWUSER))
        _check(_libc.setns(self._network, CLONE_NEWNET))
        if self.hides_services:
            _hide_services()

    def close(self) -> None:
        """Lets go of it; it ends with the last process in it."""
        for descriptor in (self._network, self._user):
            if descriptor is not None:
                os.close(descriptor)


def open_network(isolation: IsolationSettings) -> tuple[PrivateNetwork | None, str]:
    """The private network that the settings ask for, or None and the reason why there is none.

    Raises:
        StartError: it is required and the kernel allows none.
    """
    if isolation.network == "none":
        return None, 'network = "none" in [isolation]'
    try:
        network = PrivateNetwork.create()
    except StartError as error:
        if isolation.network == "required":
            raise
        return None, str(error)
    if isolation.network == "required" and not network.hides_services:
        network.close()
        raise StartError(
            "private network: expected to hide the sockets of the host's resolver and message bus, "
            "found that the kernel refuses. Allow mounts, or let the service manager hide them and "
            'set network = "auto" in [isolation]'
        )
    return network, ""


def private_network_refusal() -> str | None:
    """None where a private network can be made here, otherwise the reason; for `doctor`."""
    try:
        PrivateNetwork.create().close()
    except StartError as error:
        return str(error)
    return None


def port_listening(pid: int, port: int) -> bool:
    """Whether something listens on the IPv4 port in the network of process `pid`."""
    try:
        table = Path(f"/proc/{pid}/net/tcp").read_text()
    except OSError:
        return False
    wanted = f":{port:04X}"
    return any(
        fields[1].endswith(wanted) and fields[3] == LISTEN
        for fields in (line.split() for line in table.splitlines()[1:])
    )


def _make(tell: int, hold: int) -> NoReturn:
    """The child of `create`: becomes the first process of the namespace, waits, ends."""
    code = 1
    try:
        said = _unshare()
        _loopback_up()
        os.write(tell, said + _hides())
        os.read(hold, 1)
        code = 0
    except OSError as error:
        os.write(tell, str(error.errno or errno.EPERM).encode())
    finally:
        os._exit(code)


def _unshare() -> bytes:
    if _libc.unshare(CLONE_NEWNET) == 0:
        return b"root"
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNET))
    # The same user and group inside: nobody becomes root by it. The kernel wants setgroups closed
    # before an unprivileged process may name a group.
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(descriptor, text.encode())
        os.close(descriptor)
    return b"user"


def _hides() -> bytes:
    """`HIDES` where the folders of `SERVICES` can be hidden; tried in the child of `create`."""
    try:
        _hide_services()
    except OSError:
        return b""
    return HIDES


def _hide_services() -> None:
    """Puts an empty folder over each of `SERVICES` that this host has, for this process alone."""
    places = [place for place in SERVICES if Path(place).is_dir()]
    if not places:
        return
    _check(_libc.unshare(CLONE_NEWNS))
    # What the host mounts later is still seen here; nothing mounted here is seen there.
    _check(_libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None))
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
    for place in places:
        _check(_libc.mount(b"none", os.fsencode(place), b"tmpfs", flags, None))


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh22x", b"lo", 0)
        answer = fcntl.ioctl(any_socket, SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("h", answer, 16)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | IFF_UP))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
