"""Failures as one sentence and an exit code: the only place where the command line translates errors."""

import os
import sys
from dataclasses import dataclass

from indexer.errors import IndexerError, UsageError
from loci.flags import with_flags
from model.errors import ModelError

FAILED = 1
WRONG_USAGE = 2
SOME_UNREADABLE = 3
INTERRUPTED = 130


class Interrupted(Exception):
    """Ctrl-C; the message says what happens to the work so far."""


class SomeUnreadable(Exception):
    """Some photos could not be read; the rest of the work is done, and each such photo was named."""


@dataclass(frozen=True)
class Failure:
    """The end of a command that failed."""

    exit_code: int
    sentence: str | None
    """The line for stderr; None if it was printed already, or if nobody reads it."""


def explain(error: Exception) -> Failure | None:
    """Translate an error; return None for an unexpected one, which is a bug and shows its traceback."""
    match error:
        case UsageError():
            return Failure(WRONG_USAGE, with_flags(str(error)))
        case SomeUnreadable():
            return Failure(SOME_UNREADABLE, None)
        case Interrupted():
            return Failure(INTERRUPTED, str(error))
        case BrokenPipeError():
            return Failure(FAILED, None)
        case IndexerError() | ModelError():
            return Failure(FAILED, with_flags(str(error)))
        case OSError(strerror=str(reason)):
            where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
            return Failure(FAILED, f"{where}{reason}")
    return _explain_service(error)


def _explain_service(error: Exception) -> Failure | None:
    # If the service was not imported, it cannot have failed; importing its web framework takes long.
    errors = sys.modules.get("service.errors")
    if errors is not None and isinstance(error, errors.ServiceError):
        return Failure(FAILED, str(error))
    return None
