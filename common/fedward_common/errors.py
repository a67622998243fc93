"""Every error that Fedward raises on purpose, with its exit code and its code on the wire.

The text of an error is for the person on duty at the side that raised it: what was expected, what
was found, what to do. It never carries a value from patient data. Only `code` crosses the network.
"""

from typing import ClassVar


class FedwardError(Exception):
    """The root of Fedward's errors: `exit_code` for the shell, `code` for the wire."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"


class ConfigError(FedwardError):
    """A file or an option that a person wrote is wrong: names the key, expected, found."""

    exit_code = 2
    code = "config"


class DataError(FedwardError):
    """A site's data do not fit the study's schema; names columns and rules, never values."""

    exit_code = 3
    code = "data"


class PolicyRefused(FedwardError):
    """The site's policy says no (or does not say yes)."""

    exit_code = 4
    code = "policy"


class BudgetExceeded(FedwardError):
    """The privacy budget of this site's patients does not allow the charge."""

    exit_code = 5
    code = "budget"


class ProtocolError(FedwardError):
    """A peer sent something the protocol does not allow at this point."""

    exit_code = 6
    code = "protocol"


class SignatureRefused(FedwardError):
    """A signature, a digest or a key is not the one that was agreed on."""

    exit_code = 7
    code = "signature"


class ChannelError(FedwardError):
    """The encrypted channel could not be made or was refused."""

    exit_code = 8
    code = "channel"


class StudyFailed(FedwardError):
    """A study ended without a model: all sites refused, or too few rounds reached the quorum."""

    exit_code = 9
    code = "study-failed"


class LedgerError(FedwardError):
    """The budget ledger is damaged, rolled back or not the expected one; nothing may be charged."""

    exit_code = 10
    code = "ledger"


class ModelRefused(FedwardError):
    """A model cannot be trained with a patient-level guarantee; names the layer and the reason."""

    exit_code = 11
    code = "model"


class StartError(FedwardError):
    """A process of the federation could not start (a port in use, a missing program, a timeout)."""

    exit_code = 12
    code = "start"


class StorageError(FedwardError):
    """A disk has no room, or does not give back what was written to it."""

    exit_code = 13
    code = "storage"


REFUSAL_CODES: frozenset[str] = frozenset(
    {
        *("config", "data", "policy", "budget", "protocol", "signature", "ledger", "model"),
        *("internal", "paused", "hours", "ethics", "not-approved"),
    }
)
"""What a site may say when it refuses: one of these words and nothing else."""
