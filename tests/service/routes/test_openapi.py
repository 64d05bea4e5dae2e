"""The description at /openapi.json is complete, and the service does what it says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from service import schemas
from service.app import create_app
from service.security.keys import KeyFile, Role
from service.settings import KEYS_FILE, Settings

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from tests.service.conftest import Start

Wait = Callable[[Callable[[], bool]], None]
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


def test_every_problem_has_an_example_of_its_status(description: dict[str, Any]) -> None:
    for name, operation in operations(description):
        for status, response in operation["responses"].items():
            for content in response.get("content", {}).values():
                if status[0] in "45":
                    example = schemas.ProblemDetail.model_validate(content["example"])
                    assert example.status == int(status), name


def test_the_service_does_what_it_says(start: Start, real_index: Path, tmp_path: Path, wait: Wait) -> None:
    """Schemathesis, bounded: what no schema can say is that an image must be at least 16 pixels wide."""
    folder = shutil.copytree(real_index, tmp_path / "written")
    client = start(None, index=folder, device="cpu", rate_limit=0)
    key = KeyFile(folder / KEYS_FILE).create("writer", Role.WRITE)
    wait(lambda: client.get("/readyz").status_code == 200)
    st = Path(sys.executable).with_name("st")
    command = [str(st), "run", f"{client.base_url}/openapi.json", "--max-examples", "12", "--seed", "20"]
    command += ["--phases", "examples,coverage,fuzzing", "--generation-database", "none", "--no-color"]
    command += ["--header", f"Authorization: Bearer {key}"]
    command += ["--exclude-checks", "positive_data_acceptance"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
