"""The log: one object or one line a record, named by its request."""

import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator

import pytest

from service.logs import JsonFormatter, name_request, request_id, set_up

Begin = Callable[[str], None]


@pytest.fixture
def stderr() -> Iterator[io.StringIO]:
    """A stderr of our own, with the root logger's level put back afterwards."""
    level = logging.getLogger().level
    yield io.StringIO()
    logging.getLogger().setLevel(level)


@pytest.fixture
def begin(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set the log up as in a process where nobody has; pytest puts its own there at each test."""

    def begin(log_format: str) -> None:
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        set_up(log_format)

    return begin


def test_a_record_is_one_json_object_with_the_requests_id(stderr: io.StringIO, begin: Begin) -> None:
    begin("json")
    token = request_id.set("r-1")
    logging.getLogger("x").info("line one\nline %d", 2, extra={"status": 200, "unrelated": 1})
    request_id.reset(token)
    logging.getLogger("x").warning("later")
    first, second = map(json.loads, stderr.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first.pop("time"))
    assert first == {
        "level": "INFO",
        "logger": "x",
        "message": "line one\nline 2",
        "request_id": "r-1",
        "status": 200,
    }
    assert "request_id" not in second


def test_an_exception_is_within_the_object(stderr: io.StringIO, begin: Begin) -> None:
    begin("auto")  # this stderr is no terminal
    try:
        raise ValueError("über")
    except ValueError:
        logging.getLogger("x").exception("it failed")
    (line,) = stderr.getvalue().splitlines()
    assert line.isascii()
    entry = json.loads(line)
    assert entry["exception"].startswith("Traceback")
    assert entry["exception"].endswith("ValueError: über")


@pytest.mark.parametrize("log_format", ["text", "auto"])
def test_people_get_lines(
    stderr: io.StringIO, begin: Begin, monkeypatch: pytest.MonkeyPatch, log_format: str
) -> None:
    monkeypatch.setattr(stderr, "isatty", lambda: True)
    begin(log_format)
    token = request_id.set("r-2")
    logging.getLogger("x").info("GET / 200")
    request_id.reset(token)
    logging.getLogger("x").info("no request")
    first, second = stderr.getvalue().splitlines()
    assert re.fullmatch(r"[-\d]+ [:,\d]+ INFO x: GET / 200 \[r-2\]", first)
    assert second.endswith("INFO x: no request")


def test_other_values_are_logged_as_text() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "m", (), None)
    record.key = object
    assert json.loads(JsonFormatter().format(record))["key"] == "<class 'object'>"


@pytest.mark.parametrize("sent", ["a", "x" * 64, "2f-3._A"])
def test_a_sane_id_is_taken(sent: str) -> None:
    assert name_request(sent) == sent


@pytest.mark.parametrize("sent", [None, "", "x" * 65, "a b", "a\nb", "ä", "<script>", '"', "{}"])
def test_any_other_is_replaced(sent: str | None) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", name_request(sent))
    assert name_request(sent) != name_request(sent)
