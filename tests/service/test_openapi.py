"""The description at /openapi.json is complete, and the service does what it says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from service import schemas
from service.app import create_app
from service.settings import Settings

METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return create_app(Settings(index=tmp_path_factory.mktemp("index"))).openapi()


def operations(description: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in description["paths"].items():
        yield from ((f"{name} {path}", it) for name, it in methods.items() if name in METHODS)


def test_every_operation_is_described(description: dict[str, Any]) -> None:
    tags = {tag["name"] for tag in description["tags"]}
    ids = [operation["operationId"] for _, operation in operations(description)]
    assert len(ids) == len(set(ids)) >= 12
    for name, operation in operations(description):
        assert operation["summary"], name
        assert operation["description"].endswith("."), name
        assert set(operation["tags"]) <= tags, name
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), f"{name}: {parameter['name']}"


def test_every_answer_has_its_content(description: dict[str, Any]) -> None:
    for name, operation in operations(description):
        for status, response in operation["responses"].items():
            assert response["description"], f"{name} {status}"
            if status in ("204", "304"):
                assert "content" not in response, f"{name} {status}"
                continue
            for content in response["content"].values():
                assert content["schema"], f"{name} {status}"
            if status == "503":
                assert "Retry-After" in response["headers"]


def test_examples_are_true_to_their_schemas(description: dict[str, Any]) -> None:
    checked = set()
    for name, schema in description["components"]["schemas"].items():
        for example in schema.get("examples", []):
            model: type[BaseModel] = getattr(schemas, name)
            assert model.model_validate(example).model_dump(mode="json") == example
            checked.add(name)
    assert {"QueryAnswer", "PhotoInfo", "PlaceDetail", "PlacePage", "PlaceCollection", "Readiness"} <= checked


def test_examples_of_problems_have_the_status_that_they_illustrate(description: dict[str, Any]) -> None:
    for name, operation in operations(description):
        for status, response in operation["responses"].items():
            for content in response.get("content", {}).values():
                if status[0] in "45" and (example := content.get("example")):
                    assert schemas.ProblemDetail.model_validate(example).status == int(status), name


def test_the_service_does_what_it_says(client: httpx.Client, tmp_path: Path) -> None:
    """Schemathesis, bounded: what no schema can say is that an image must be at least 16 pixels wide."""
    st = Path(sys.executable).with_name("st")
    command = [str(st), "run", f"{client.base_url}/openapi.json", "--max-examples", "12", "--seed", "20"]
    command += ["--phases", "examples,coverage,fuzzing", "--generation-database", "none", "--no-color"]
    command += ["--exclude-checks", "positive_data_acceptance"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
