"""What operators and people with a browser see."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.app import create_app
from service.settings import Settings

if TYPE_CHECKING:
    from tests.service.conftest import FakeIndex, Start

Problem = Callable[..., dict[str, Any]]
MakePhoto = Callable[..., bytes]
Wait = Callable[[Callable[[], bool]], None]


def test_ready(client: httpx.Client) -> None:
    assert client.get("/readyz").json() == {"status": "ready", "model": "f00d", "snapshot": "01/000001"}


def test_a_dead_dispatcher_is_not_ready_but_alive(
    start: Start, index: FakeIndex, make_photo: MakePhoto, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(index.network, "see", die)
    client = start(index)
    problem(client.post("/v1/query", files={"image": make_photo()}), 503)
    assert problem(client.get("/readyz"), 503)["detail"] == "the dispatcher died of SystemExit"
    assert client.get("/healthz").status_code == 200
    assert "loci_ready 0.0" in client.get("/metrics").text


def test_metrics_count_by_route_and_status(client: httpx.Client, make_photo: MakePhoto, wait: Wait) -> None:
    client.post("/v1/query", files={"image": make_photo()})
    client.post("/v1/query")
    client.get("/v1/photos/red")
    client.get("/v1/photos/pink")
    client.get("/nowhere/at/all")
    wait(lambda: "loci_index_photos 3.0" in client.get("/metrics").text)
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    for line in (
        'loci_requests_total{route="/v1/query",status="200"} 1.0',
        'loci_requests_total{route="/v1/query",status="422"} 1.0',
        'loci_requests_total{route="/v1/photos/{id}",status="200"} 1.0',
        'loci_requests_total{route="/v1/photos/{id}",status="404"} 1.0',
        'loci_requests_total{route="none",status="404"} 1.0',
        'loci_stage_seconds_count{stage="decode"} 1.0',
        'loci_stage_seconds_count{stage="embed"} 1.0',
        'loci_stage_seconds_count{stage="search"} 1.0',
        "loci_batch_images_count 1.0",
        "loci_queue_images 0.0",
        "loci_ready 1.0",
    ):
        assert line in response.text.splitlines()


def test_each_app_has_metrics_of_its_own(start: Start, index: FakeIndex, make_photo: MakePhoto) -> None:
    one, two = start(index), start(index)
    one.post("/v1/query", files={"image": make_photo()})
    assert "loci_batch_images_count 1.0" in one.get("/metrics").text
    assert "loci_batch_images_count 0.0" in two.get("/metrics").text


def test_unknown_routes_and_methods_are_problems_too(client: httpx.Client, problem: Problem) -> None:
    assert problem(client.get("/nowhere"), 404)["title"] == "Not Found"
    response = client.get("/v1/query")
    assert problem(response, 405)["type"] == "about:blank"
    assert response.headers["allow"] == "POST"


def test_requests_are_logged_on_one_line(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, wait: Wait
) -> None:
    def lines() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == "service.security.middleware"]

    with caplog.at_level(logging.INFO, logger="service.security.middleware"):
        client.get("/v1/photos/a%0Ab")
        wait(lambda: bool(lines()))  # the line is written after the answer has gone out
    (record,) = lines()
    assert re.fullmatch(r"GET /v1/photos/a%0Ab 404 \d+\.\d ms", record.getMessage())
    assert record.__dict__["status"] == 404


def test_the_documentation_needs_no_other_server(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(parts) == 4
    for part in parts:
        assert client.get(part).status_code == 200
    assert client.get("/openapi.json").json()["info"]["title"] == "loci"
    assert "validatorUrl: null" in client.get("/docs/start.js").text
    assert client.get("/docs/nothing.js").status_code == 404


def test_the_documentation_can_be_off(start: Start, index: FakeIndex, problem: Problem) -> None:
    client = start(index, docs=False)
    for path in ("/docs", "/redoc", "/openapi.json", "/docs/swagger-ui.css", "/docs/start.js"):
        problem(client.get(path), 404)
    assert client.get("/page/settings.json").json()["docs"] is False


@pytest.fixture
def description(tmp_path: Path) -> dict[str, Any]:
    return create_app(Settings(index=tmp_path)).openapi()


def test_openapi_documents_every_answer(description: dict[str, Any]) -> None:
    assert set(description["paths"]) == {
        "/v1/query",
        "/v1/query/clip",
        "/v1/embed",
        "/v1/places",
        "/v1/places.geojson",
        "/v1/places/{id}",
        "/v1/photos",
        "/v1/photos/{id}",
        "/v1/photos/{id}/image",
        "/v1/photos/{id}/thumbnail",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    query = description["paths"]["/v1/query"]["post"]
    assert set(query["responses"]) == {
        *("200", "400", "401", "403", "408", "409", "413", "415", "421", "422", "429", "500", "503")
    }
    assert set(query["requestBody"]["content"]) == {
        "multipart/form-data",
        "image/*",
        "application/octet-stream",
    }
    for path in description["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            for status, response in operation["responses"].items():
                if status.startswith(("4", "5")):
                    (content,) = response["content"].items()
                    assert content[0] == "application/problem+json"
                    assert content[1]["schema"] == {"$ref": "#/components/schemas/ProblemDetail"}


def test_openapi_describes_every_field(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]
    assert {"QueryAnswer", "PlaceMatch", "PhotoMatch", "ProblemDetail", "PlacePage"} <= set(schemas)
    assert "HTTPValidationError" not in schemas
    for name, schema in schemas.items():
        for field, value in schema["properties"].items():
            assert value.get("description"), f"{name}.{field}"


def test_openapi_refers_only_to_what_it_defines(description: dict[str, Any]) -> None:
    references = set(re.findall(r"'\$ref': '([^']+)'", str(description)))
    assert references
    for reference in references:
        prefix, _, name = reference.rpartition("/")
        assert prefix == "#/components/schemas"
        assert name in description["components"]["schemas"]
