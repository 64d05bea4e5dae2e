"""What FastAPI cannot work out by itself: image bodies and problem+json in the OpenAPI description."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.errors import PROBLEM_JSON
from service.schemas import ProblemDetail
from service.uploads import FIELD

Responses = dict[int | str, dict[str, Any]]

MEANING = {
    401: "This needs an API key, and none came that is known.",
    403: "The key does not open this, or a page of another site asks.",
    408: "The body came too slowly.",
    421: "The service does not answer to the name in the Host header.",
    429: "Too many requests in a short time; Retry-After says when the next one is taken.",
    400: "The image cannot be decoded, or the body is malformed.",
    404: "There is no such thing in the index, or its file is gone.",
    409: "The descriptor was made by another model.",
    413: "Too many bytes or too many pixels.",
    415: "Not an image type.",
    422: "A parameter or the image is missing or out of range.",
    500: "The service failed on this request.",
    501: "The index that is served takes no photos.",
    507: "The disk of the index is full; nothing was stored.",
    503: "Not ready, or too many requests are waiting; Retry-After says when to come back.",
}


def problems(*statuses: int) -> Responses:
    """Describe the problem+json answers of a route."""
    return {
        status: {
            "description": MEANING.get(status, HTTPStatus(status).phrase),
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/ProblemDetail"}}},
        }
        for status in statuses
    }


def binary(*media_types: str) -> dict[str, Any]:
    """Describe a response that is a file."""
    schema = {"type": "string", "format": "binary"}
    return {"content": {media_type: {"schema": schema} for media_type in media_types}}


def image_body(*, several: bool, fields: Mapping[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """Describe a request body that holds one image, or several, and as multipart also `fields`."""
    image = {"type": "string", "format": "binary", "description": "A photo, in any common format."}
    part = {"type": "array", "items": image, "minItems": 1} if several else image
    form = {"type": "object", "required": [FIELD], "properties": {FIELD: part, **(fields or {})}}
    content = {
        "multipart/form-data": {"schema": form},
        "image/*": {"schema": image},
        "application/octet-stream": {"schema": image},
    }
    return {"requestBody": {"required": True, "content": content}}


KEY = "key"
READING: list[dict[str, list[str]]] = [{}, {KEY: []}]  # open, or by any key
SCHEME = {"type": "http", "scheme": "bearer", "description": "An API key: loci keys create NAME [--write]."}
HEALTH = ("/healthz", "/readyz")


def install(app: FastAPI) -> None:
    """Add to the description of `app` the problem schema, and what the doors ask and answer."""
    generate: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        description = generate()
        _, schemas = models_json_schema(
            [(ProblemDetail, "serialization")], ref_template="#/components/schemas/{model}"
        )
        components = description.setdefault("components", {})
        components.setdefault("schemas", {}).update(schemas["$defs"])
        components["securitySchemes"] = {KEY: SCHEME}
        for path, operations in description["paths"].items():
            for method, operation in operations.items():
                _describe_doors(path, method, operation)
        return description

    app.openapi = openapi  # type: ignore[method-assign]


def _describe_doors(path: str, method: str, operation: dict[str, Any]) -> None:
    """Say who may use an operation, and what the middleware may answer in its place."""
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
