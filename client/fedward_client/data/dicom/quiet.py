"""pydicom warns and logs with the values that it finds odd: a patient's name in a log."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LOGGERS: Final = ("pydicom", "highdicom", "pynetdicom", "dicomweb_client", "urllib3")


@contextmanager
def without_words() -> Iterator[None]:
    """Inside the block nothing that these libraries say reaches a log or stderr."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
