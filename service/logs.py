"""How the log is written: JSON objects for machines, lines for people; each names its request."""

import json
import logging
import re
import sys
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that this task works for."""

FIELDS = ("method", "path", "route", "status", "milliseconds", "client", "key", "problem")
"""What the line of a request adds to the object, where it is there."""
SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def name_request(sent: str | None) -> str:
    """Take the caller's own id for a request where it is sane, else make one."""
    return sent if sent is not None and SANE_ID.fullmatch(sent) else uuid.uuid4().hex


def set_up(log_format: str) -> None:
    """Write the log to stderr, as `json`, as `text`, or (`auto`) as text where a person watches."""
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.addFilter(_add_request)
    handler.setFormatter(TextFormatter(TEXT_FORMAT) if as_text else JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record: time, level, logger, message, and what else is known."""
        return json.dumps(_entry(record, self), default=str)


class TextFormatter(logging.Formatter):
    """A line for people; what belongs to a request ends with its id."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        line = super().format(record)
        request = getattr(record, "request_id", None)
        return line if request is None else f"{line} [{request}]"


def _add_request(record: logging.LogRecord) -> bool:
    if not hasattr(record, "request_id"):
        record.request_id = request_id.get()
    return True


def _entry(record: logging.LogRecord, formatter: logging.Formatter) -> Mapping[str, object]:
    entry: dict[str, object] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname,
        "logger": record.name,
        "message": record.getMessage(),
    }
    for field in ("request_id", *FIELDS):
        value = getattr(record, field, None)
        if value is not None:
            entry[field] = value
    if record.exc_info:
        entry["exception"] = formatter.formatException(record.exc_info)
    return entry
