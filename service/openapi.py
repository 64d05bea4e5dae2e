"""What FastAPI cannot work out by itself: image bodies and problem+json in the OpenAPI description."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import service.schemas
from service.errors import PROBLEM_JSON
from service.schemas import ProblemDetail
from service.uploads import FIELD

Responses = dict[int | str, dict[str, Any]]

MEANING = {
    400: "The image cannot be decoded, or the body is malformed.",
    404: "There is no such thing in the index, or its file is gone.",
    409: "The descriptor was made by another model.",
    413: "Too many bytes or too many pixels.",
    415: "Not an image type.",
    422: "A parameter or the image is missing or out of range.",
    500: "The service failed on this request.",
    503: "Not ready, or too many requests are waiting; Retry-After says when to come back.",
}


EXAMPLES = {
    400: ("undecodable-image", "Image cannot be decoded", "not an image that can be read", "image"),
    404: ("not-found", "Not found", "no photo 2f1c in this index", None),
    409: ("model-mismatch", "Made by another model", "this index has 256-D descriptors, got 512-D", None),
    413: (
        "too-large",
        "Upload too large",
        "the body is larger than the 20 MB that this service takes",
        "image",
    ),
    415: (
        "unsupported-media-type",
        "Not an image type",
        "the body is of type text/plain; send image/*",
        "image",
    ),
    422: ("invalid-request", "Invalid request", "k: Input should be less than or equal to 100", "k"),
    500: ("internal", "Internal error", "the service failed on this request; its log says why", None),
    503: ("overloaded", "Overloaded", "64 images are waiting already, try again in a moment", None),
}

TAGS = [
    {"name": "query", "description": "Photos in, answers or descriptors out."},
    {"name": "places", "description": "What an answer ranks: photos of one spot."},
    {"name": "photos", "description": "The photos of the index."},
    {"name": "operation", "description": "For whoever runs the service."},
]


def problems(*statuses: int) -> Responses:
    """Describe the problem+json answers of a route."""
    return {status: _problem(status) for status in statuses}


def _problem(status: int) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/ProblemDetail"}}
    if status in EXAMPLES:
        kind, title, detail, field = EXAMPLES[status]
        problem = ProblemDetail(
            type=f"urn:loci:problem:{kind}", title=title, status=status, detail=detail, field=field
        )
        content["example"] = problem.model_dump(exclude_none=True)
    meaning = MEANING.get(status, HTTPStatus(status).phrase)
    response: dict[str, Any] = {"description": meaning, "content": {PROBLEM_JSON: content}}
    if status in (429, 503):
        response["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}}
        }
    return response


def binary(*media_types: str) -> dict[str, Any]:
    """Describe a response that is a file."""
    schema = {"type": "string", "format": "binary"}
    return {"content": {media_type: {"schema": schema} for media_type in media_types}}


def image_body(*, several: bool) -> dict[str, Any]:
    """Describe a request body that holds one image, or several."""
    image = {"type": "string", "format": "binary", "description": "A photo, in any common format."}
    part = {"type": "array", "items": image, "minItems": 1} if several else image
    form = {"type": "object", "required": [FIELD], "properties": {FIELD: part}}
    content = {
        "multipart/form-data": {"schema": form},
        "image/*": {"schema": image},
        "application/octet-stream": {"schema": image},
    }
    return {"requestBody": {"required": True, "content": content}}


def examples_of(model: type[BaseModel]) -> Any:
    """Give a schema's own examples: FastAPI leaves their nulls out."""
    extra = model.model_config.get("json_schema_extra")
    return extra["examples"] if isinstance(extra, dict) else []


def install(app: FastAPI) -> None:
    """Add the problem schema to the description of `app`."""
    generate: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        description = generate()
        _, schemas = models_json_schema(
            [(ProblemDetail, "serialization")], ref_template="#/components/schemas/{model}"
        )
        description["tags"] = TAGS
        described = description.setdefault("components", {}).setdefault("schemas", {})
        described.update(schemas["$defs"])
        for name, schema in described.items():
            if "examples" in schema:
                schema["examples"] = examples_of(getattr(service.schemas, name))
        return description

    app.openapi = openapi  # type: ignore[method-assign]
