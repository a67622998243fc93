"""`doctor`: findings with how to fix them, and the checks that coordinator and hospital share.

A check looks at the real thing, changes nothing and returns findings; it raises for nothing that it
examines.
"""

from fedward_common.doctor.certificates import (
    EXPIRY_MARGIN,
    NO_CHECK_TIME,
    PROBE_SECONDS,
    IdentityFiles,
    certificate_chain,
    certificate_expiry,
    shows_certificate_of,
    ssl_reason,
    tls13_client,
)
from fedward_common.doctor.files import (
    disk,
    event_log,
    key_file,
    memory,
    private_folder,
    read_meminfo,
    socket_paths,
)
from fedward_common.doctor.findings import (
    EXIT_CODES,
    FORMAT,
    Examination,
    Finding,
    Level,
    fail,
    ok,
    warn,
)
from fedward_common.doctor.machine import (
    FRAMEWORKS,
    PEOPLE,
    SILENCED,
    loopback_port,
    network_separation,
    program,
    read_interfaces,
    read_strangers,
    satisfies,
    telemetry,
    versions,
)

__all__ = [
    "EXIT_CODES",
    "EXPIRY_MARGIN",
    "FORMAT",
    "FRAMEWORKS",
    "NO_CHECK_TIME",
    "PEOPLE",
    "PROBE_SECONDS",
    "SILENCED",
    "Examination",
    "Finding",
    "IdentityFiles",
    "Level",
    "certificate_chain",
    "certificate_expiry",
    "disk",
    "event_log",
    "fail",
    "key_file",
    "loopback_port",
    "memory",
    "network_separation",
    "ok",
    "private_folder",
    "program",
    "read_interfaces",
    "read_meminfo",
    "read_strangers",
    "satisfies",
    "shows_certificate_of",
    "socket_paths",
    "ssl_reason",
    "telemetry",
    "tls13_client",
    "versions",
    "warn",
]
