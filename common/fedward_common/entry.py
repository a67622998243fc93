"""How every Fedward program ends: one line for the person on duty and an exit code per class."""

import atexit
import gc
import io
import json
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Final, NoReturn

from fedward_common.errors import FedwardError

INTERNAL_EXIT: Final = 70
REFUSED_EXIT: Final = 74
"""EX_IOERR of sysexits.h."""
TERMINATED_EXIT: Final = 143
"""128 and the number of SIGTERM, as shells say it."""


def leave_lightly() -> None:
    """From now on the process ends without a search for garbage among all that it imported.

    Half a second of CPU of every program that has torch or Flower, and a site ends several at once.
    """
    atexit.register(gc.freeze)


def end_in_order() -> None:
    """From now on SIGTERM ends the program as an exit does: what is open is closed and stopped."""

    def leave(*_: object) -> NoReturn:
        sys.exit(TERMINATED_EXIT)

    signal.signal(signal.SIGTERM, leave)


def run_program(program: Callable[[], object], *, name: str) -> NoReturn:
    """Runs `program` and exits: 0, the error's own code, 130 after Ctrl-C, 70 for a defect, 74
    where the operating system refused a file.

    An error of ours is one line on stderr (with `--json` an object), a defect names its type only,
    because its text may hold a value; `--debug` prints the traceback as well.
    """
    leave_lightly()
    debug, as_json = "--debug" in sys.argv, "--json" in sys.argv
    for stream in (sys.stdout, sys.stderr):
        # A terminal without UTF-8 gets question marks for an epsilon, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        program()
    except FedwardError as error:
        _tell(name, error.code, str(error), as_json=as_json)
        if debug:
            traceback.print_exc()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        # Without the name: it may be that of a patient's file.
        why = error.strerror or type(error).__name__
        text = f"expected files that can be read and written, found: {why}. Check the paths given"
        _tell(name, "system", text, as_json=as_json)
        if debug:
            traceback.print_exc()
        sys.exit(REFUSED_EXIT)
    except Exception as error:  # noqa: BLE001 - entry point: see the docstring
        kind = type(error).__name__
        text = f"{kind}: a defect of Fedward. Run it again with --debug and report it"
        _tell(name, "internal", text, as_json=as_json)
        if debug:
            traceback.print_exc()
        sys.exit(INTERNAL_EXIT)
    sys.exit(0)


def _tell(name: str, code: str, text: str, *, as_json: bool) -> None:
    line = json.dumps({"error": code, "message": text}) if as_json else f"{name}: {text}"
    sys.stderr.write(line + "\n")
