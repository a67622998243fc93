"""How an invite comes in: from a file or stdin, never from the command line (rules 16)."""

import sys
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from fedward_common.errors import ConfigError
from fedward_common.trust.enrolment import Invite

STDIN: Final = "-"
MAX_BYTES: Final = 4096


def read_invite(file: str, *, stdin: BinaryIO | None = None) -> Invite:
    """The invite in `file`, or on stdin where it is "-".

    Raises:
        ConfigError: no such file, or no invite in it; the text never contains any part of it.
    """
    try:
        if file == STDIN:
            data = (stdin or sys.stdin.buffer).read(MAX_BYTES)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(MAX_BYTES)
        text = data.decode("ascii")
    except OSError as error:
        raise ConfigError(
            f"--invite-file: expected a readable file, found {error.strerror}"
        ) from error
    except UnicodeDecodeError:
        text = ""
    return Invite.parse(text)


def refuse_argument() -> NoReturn:
    """Says why the invite may not stand on the command line.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "enrol: expected the invite in a file or on stdin, found it on the command line, where "
        "every user of this machine and its shell history can read it. Ask the operator for a new "
        "invite and run: fedward-client enrol --invite-file FILE (or - for stdin)"
    )


def refuse_nothing() -> NoReturn:
    """Says what enrolment needs.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "enrol: expected --invite-file FILE (or - for stdin) with the operator's invite, or "
        "--install GRANT with a grant that was carried here, found neither"
    )
