"""Every failure as one sentence and an exit code: the one place where the command line translates."""

import os
import sys
from dataclasses import dataclass

from indexer.errors import IndexerError, UsageError
from model.errors import ModelError

FAILED = 1
WRONG_USAGE = 2
SOME_UNREADABLE = 3
INTERRUPTED = 130


class Interrupted(Exception):
    """Ctrl-C, with a sentence on what becomes of the work so far."""


class SomeUnreadable(Exception):
    """The work is done, but some photos could not be read; each was named already."""


@dataclass(frozen=True)
class Failure:
    """How the command ends."""

    exit_code: int
    sentence: str | None
    """What to say on stderr; None where it was said already, or nobody listens."""


def explain(error: Exception) -> Failure | None:
    """Translate an error, or give None for one that nobody foresaw: that is a bug and shows its traceback."""
    match error:
        case UsageError():
            return Failure(WRONG_USAGE, str(error))
        case SomeUnreadable():
            return Failure(SOME_UNREADABLE, None)
        case Interrupted():
            return Failure(INTERRUPTED, str(error))
        case BrokenPipeError():
            return Failure(FAILED, None)
        case IndexerError() | ModelError():
            return Failure(FAILED, str(error))
        case OSError(strerror=str(reason)):
            where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
            return Failure(FAILED, f"{where}{reason}")
    return _explain_service(error)


def _explain_service(error: Exception) -> Failure | None:
    # Where the service was not imported it cannot have failed, and its web framework takes long to import.
    errors = sys.modules.get("service.errors")
    if errors is not None and isinstance(error, errors.ServiceError):
        return Failure(FAILED, str(error))
    return None
