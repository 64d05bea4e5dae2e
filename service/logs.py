"""Logging as JSON objects or as text; each line has the id of its request."""

import json
import logging
import re
import sys
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the current request."""

FIELDS = ("method", "path", "route", "status", "milliseconds", "client", "key", "problem")
"""Fields of a request's line in JSON, if present."""
SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def name_request(sent: str | None) -> str:
    """Return the caller's request id if it is valid, otherwise a new one."""
    return sent if sent is not None and SANE_ID.fullmatch(sent) else uuid.uuid4().hex


def set_up(log_format: str) -> None:
    """Log to stderr as `json`, as `text`, or with `auto` as text on a terminal."""
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.addFilter(_add_request)
    handler.setFormatter(TextFormatter(TEXT_FORMAT) if as_text else JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record: time, level, logger, message, and other fields."""
        return json.dumps(_entry(record, self), default=str)


class TextFormatter(logging.Formatter):
    """One line of text; the id of a request is at its end."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
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
