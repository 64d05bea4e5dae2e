"""What can be set about the service: by LOCI_… variables or in code; nothing else reads the environment."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import ServiceError

KEYS_FILE = "keys.json"
"""Where the keys are, in an index's folder."""


def _split(value: object) -> object:
    """Take a list from one line, separated by commas."""
    return (
        tuple(item.strip() for item in value.split(",") if item.strip()) if isinstance(value, str) else value
    )


def _address(value: object) -> object:
    """Check an address and a port."""
    if not isinstance(value, str) or not value:
        return value or None
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("expected an address and a port, as in 127.0.0.1:9100")
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """The service's settings; each can be given as LOCI_ and its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="LOCI_", frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    index: Path
    """Folder of the index to serve, or milvus://HOST/NAME for a snapshot that was sent there."""
    model: Path | None = None
    """File of the model, where the index is on Milvus."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    insecure: bool = False
    """Let everybody read, also on an address that other machines reach; writing needs a key all the same."""
    device: str = "auto"
    """Where the network runs: auto, cpu, cuda, cuda:1 …"""
    precision: str = "auto"
    """Number format that the network runs in; auto takes the fastest safe one."""
    known_share: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Share of the queries that show a place of the index, between 0 and 1; confidence holds for it."""
    max_upload_mb: Annotated[float, Field(gt=0)] = 20.0
    """Largest request body in megabytes (10⁶ bytes), all its images together."""
    max_pixels: Annotated[int, Field(gt=0)] = 100_000_000
    """Largest image in pixels, judged by its header before it is decoded."""
    max_images: Annotated[int, Field(ge=1)] = 64
    """Most images in one request to /v1/embed."""
    max_batch: Annotated[int, Field(ge=1)] = 16
    """Most images that go through the network at once."""
    queue_size: Annotated[int, Field(ge=1)] = 64
    """Most images that wait for the network, and most photos that wait to be decoded; more get a 503."""
    decode_threads: Annotated[int, Field(ge=1)] = min(8, os.cpu_count() or 1)
    """Threads that decode photos and make thumbnails."""
    refresh_seconds: Annotated[float, Field(gt=0)] = 5.0
    """How often a new snapshot of the index is looked for."""
    stall_seconds: Annotated[float, Field(gt=0)] = 60.0
    """After how long on one batch the service says that it is not ready."""
    wedged_seconds: Annotated[float, Field(gt=0)] = 300.0
    """After how long on one batch the service ends, with exit code 1, so that it is restarted."""
    shutdown_seconds: Annotated[int, Field(ge=0)] = 30
    """How long requests in progress may take to finish on shutdown."""
    thumbnail_size: Annotated[int, Field(ge=16, le=4096)] = 320
    """Longest side of a thumbnail in pixels."""
    docs: bool = True
    """Whether to serve /docs and /openapi.json."""
    rebuild_share: Annotated[float, Field(gt=0)] = 0.1
    """A new snapshot is made in the background once this share of the last was added or deleted."""
    rebuild_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How often it is looked whether that is so."""

    # Under load
    max_uploads: Annotated[int, Field(ge=1)] = 128
    """Most requests with a body that are read or answered at once; more get a 503 before they are read."""
    max_uploads_mb: Annotated[float, Field(gt=0)] = 256.0
    """Most megabytes of request bodies held at once; more get a 503. One request alone is always taken."""
    min_upload_rate: Annotated[float, Field(gt=0)] = 16.0
    """Kilobytes a second that a body must come at, after `upload_grace_seconds`; a slower one gets a 408."""
    upload_grace_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How long a body may take whatever its size."""
    head_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How long a request's head may take; the connection is then closed."""
    write_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long a client may take nothing of its answer; the connection is then closed."""
    keep_alive_seconds: Annotated[int, Field(ge=1)] = 5
    """How long an idle connection is kept for the next request."""
    max_connections: Annotated[int, Field(ge=1)] = 512
    """Most connections at once; more are told 503 and closed."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """How the log is written: auto is text on a terminal, else a JSON object a line."""

    # Doors
    keys: Path | None = None
    """File of the API keys; keys.json in the index's folder, if not given."""
    allowed_hosts: Names = ()
    """Names that requests may address the service by; without any, see docs/security.md."""
    cors_origins: Names = ()
    """Origins (https://example.org) whose pages may use the service; * is every page."""
    trusted_proxies: Names = ()
    """Addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    rate_limit: Annotated[float, Field(ge=0)] = 100.0
    """Requests a second that one key, or one address without a key, may keep up; 0 sets no limit."""
    rate_burst: Annotated[int, Field(ge=1)] = 500
    """Requests that it may make at once, before that limit holds."""
    metrics: bool = True
    """Whether to serve /metrics."""
    metrics_address: Annotated[str | None, BeforeValidator(_address)] = None
    """Address and port (127.0.0.1:9100) to serve /metrics on, without a key, instead of the service's own."""

    # The page
    map_tiles: str | None = None
    """URL template of map tiles, with {z}, {x} and {y}; none by default: the page's maps then show a grid."""
    map_attribution: str = ""
    """Whom the page names as the tiles' source."""

    @field_validator("map_tiles")
    @classmethod
    def _one_origin(cls, template: str | None) -> str | None:
        if not template:
            return None
        if not re.fullmatch(r"https?://[\w.\-]+(:\d+)?/[^\s;,'\"]*", template, re.ASCII):
            raise PydanticCustomError("map_tiles", "must be an http or https URL of one host, without spaces")
        if not all(part in template for part in ("{z}", "{x}", "{y}")):
            raise PydanticCustomError("map_tiles", "must hold {z}, {x} and {y}")
        return template

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Take what is given and not None, else the environment, else the defaults.

        Raises:
            ServiceError: a value is missing or wrong; the sentence names the setting.
        """
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            raise ServiceError(_sentence(error)) from None

    @property
    def keys_file(self) -> Path:
        """Where the API keys are."""
        return self.keys or self.index / KEYS_FILE

    @property
    def metrics_here(self) -> bool:
        """Whether /metrics is the service's own."""
        return self.metrics and self.metrics_address is None

    @property
    def max_upload_bytes(self) -> int:
        """The upload limit in bytes."""
        return int(self.max_upload_mb * 1_000_000)


def _sentence(error: ValidationError) -> str:
    problems = [(str(item["loc"][0]) if item["loc"] else "settings", item["msg"]) for item in error.errors()]
    return "; ".join(f"setting {name} (LOCI_{name.upper()}): {message}" for name, message in problems)
