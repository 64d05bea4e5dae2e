"""Additions to the OpenAPI description: image bodies and problem+json."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import service.schemas
from service.errors import PROBLEM_JSON
from service.routes.uploads import FIELD
from service.schemas import ProblemDetail

Responses = dict[int | str, dict[str, Any]]

MEANING = {
    400: "The image cannot be decoded, or the body is malformed.",
    401: "This needs an API key, and none came that is known.",
    403: "The key does not open this, or a page of another site asks.",
    404: "There is no such thing in the index, or its file is gone.",
    408: "The body came too slowly.",
    409: "The descriptor was made by another model.",
    413: "Too many bytes or too many pixels.",
    415: "Not an image type.",
    421: "The service does not answer to the name in the Host header.",
    422: "A parameter or the image is missing or out of range.",
    429: "Too many requests in a short time; Retry-After says when the next one is taken.",
    500: "The service failed on this request.",
    501: "The index that is served takes no photos.",
    503: "Not ready, or too many requests are waiting; Retry-After says when to come back.",
    507: "The disk of the index is full; nothing was stored.",
}

EXAMPLES = {
    400: ("undecodable-image", "Image cannot be decoded", "not an image that can be read", "image"),
    401: (
        "unauthorised",
        "Key needed",
        "this needs a key for writing; send it as 'Authorization: Bearer KEY'",
        None,
    ),
    403: ("forbidden", "Not allowed", "the key phone is for reading, this needs one for writing", None),
    404: ("not-found", "Not found", "no photo 2f1c in this index", None),
    408: ("too-slow", "Upload too slow", "the body came too slowly: 4096 bytes in 10 s", None),
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
    421: (
        "misdirected",
        "Another host",
        "this service does not answer to the name in the Host header; LOCI_ALLOWED_HOSTS names those that it"
        " answers to",
        None,
    ),
    422: ("invalid-request", "Invalid request", "k: Input should be less than or equal to 100", "k"),
    429: (
        "too-many-requests",
        "Too many requests",
        "too many requests in a short time; Retry-After says when the next one is taken",
        None,
    ),
    500: ("internal", "Internal error", "the service failed on this request; its log says why", None),
    501: ("not-writable", "Not writable", "the index that is served cannot be written", None),
    503: ("overloaded", "Overloaded", "64 images are waiting already, try again in a moment", None),
    507: ("disk-full", "Disk full", "the disk of the index has no room for it", None),
}

TAGS = [
    {"name": "query", "description": "Photos in, answers or descriptors out."},
    {"name": "places", "description": "What an answer ranks: photos of one spot."},
    {"name": "photos", "description": "The photos of the index."},
    {"name": "operation", "description": "For whoever runs the service."},
]


def problems(*statuses: int) -> Responses:
    """Return the problem+json answers of a route."""
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
    """Return the description of a response that is a file."""
    schema = {"type": "string", "format": "binary"}
    return {"content": {media_type: {"schema": schema} for media_type in media_types}}


def image_body(*, several: bool, fields: Mapping[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return the description of a request body with one or several images, and `fields` in multipart."""
    image = {"type": "string", "format": "binary", "description": "A photo, in any common format."}
    part = {"type": "array", "items": image, "minItems": 1} if several else image
    form = {"type": "object", "required": [FIELD], "properties": {FIELD: part, **(fields or {})}}
    content = {
        "multipart/form-data": {"schema": form},
        "image/*": {"schema": image},
        "application/octet-stream": {"schema": image},
    }
    return {"requestBody": {"required": True, "content": content}}


def examples_of(model: type[BaseModel]) -> Any:
    """Return a schema's examples with their nulls, which FastAPI leaves out."""
    extra = model.model_config.get("json_schema_extra")
    return extra["examples"] if isinstance(extra, dict) else []


KEY = "key"
READING: list[dict[str, list[str]]] = [{}, {KEY: []}]  # open, or with any key
SCHEME = {"type": "http", "scheme": "bearer", "description": "An API key: loci keys create NAME [--write]."}
HEALTH = ("/healthz", "/readyz")


def install(app: FastAPI) -> None:
    """Add the problem schema, security, and middleware answers to the description of `app`."""
    generate: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        description = generate()
        _, schemas = models_json_schema(
            [(ProblemDetail, "serialization")], ref_template="#/components/schemas/{model}"
        )
        description["tags"] = TAGS
        components = description.setdefault("components", {})
        components["securitySchemes"] = {KEY: SCHEME}
        described = components.setdefault("schemas", {})
        described.update(schemas["$defs"])
        for name, schema in described.items():
            if "examples" in schema:
                schema["examples"] = examples_of(getattr(service.schemas, name))
        for path, operations in description["paths"].items():
            for method, operation in operations.items():
                _describe_doors(path, method, operation)
        return description

    app.openapi = openapi  # type: ignore[method-assign]


def _describe_doors(path: str, method: str, operation: dict[str, Any]) -> None:
    """Add security and the middleware's answers to an operation."""
    statuses = [421]
    if path not in HEALTH:
        operation["security"] = operation.get("security", READING)
        statuses += [401, 429]
    if method not in ("get", "head"):
        statuses += [403]
    if "requestBody" in operation:
        statuses += [408]
    answers = {str(status): answer for status, answer in problems(*statuses).items()}
    operation["responses"] = answers | operation["responses"]
