"""Settings of the service, from LOCI_… variables or code. Nothing else reads the environment."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import ServiceError

KEYS_FILE = "keys.json"
"""Name of the keys file in an index's folder."""


def _split(value: object) -> object:
    """Parse a list separated by commas."""
    return (
        tuple(item.strip() for item in value.split(",") if item.strip()) if isinstance(value, str) else value
    )


def _address(value: object) -> object:
    """Parse an address and a port."""
    if not isinstance(value, str) or not value:
        return value or None
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("expected an address and a port, as in 127.0.0.1:9100")
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Settings of the service. The variable of each is LOCI_ and its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="LOCI_", frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    index: Path
    """Folder of the index, or milvus://HOST/NAME for a snapshot that was sent there."""
    model: Path | None = None
    """Model file, if the index is on Milvus."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    insecure: bool = False
    """Let everybody read without a key, also from other machines. Writing still needs a key."""
    device: str = "auto"
    """Device of the network: auto, cpu, cuda, cuda:1 …"""
    precision: str = "auto"
    """Number format of the network; auto is the fastest safe one."""
    known_share: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Share of queries that show a place in the index, between 0 and 1; confidence depends on it."""
    max_upload_mb: Annotated[float, Field(gt=0)] = 20.0
    """Largest request body in megabytes (10⁶ bytes), with all its images."""
    max_pixels: Annotated[int, Field(gt=0)] = 100_000_000
    """Most pixels of an image; checked in its header, before decoding."""
    max_images: Annotated[int, Field(ge=1)] = 64
    """Most images in a request to /v1/embed."""
    max_batch: Annotated[int, Field(ge=1)] = 16
    """Most images in a batch of the network."""
    queue_size: Annotated[int, Field(ge=1)] = 64
    """Most images that wait for the network, and most photos that wait for decoding; more get a 503."""
    decode_threads: Annotated[int, Field(ge=1)] = min(8, os.cpu_count() or 1)
    """Threads that decode photos and make thumbnails."""
    refresh_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Seconds between two checks for a new snapshot."""
    stall_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Seconds of one batch after which the service is not ready."""
    wedged_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Seconds of one batch after which the service exits with code 1, to be restarted."""
    shutdown_seconds: Annotated[int, Field(ge=0)] = 30
    """Seconds for requests in progress to finish at shutdown."""
    thumbnail_size: Annotated[int, Field(ge=16, le=4096)] = 320
    """Longest side of a thumbnail in pixels."""
    docs: bool = True
    """Whether to serve /docs and /openapi.json."""
    rebuild_share: Annotated[float, Field(gt=0)] = 0.1
    """Share of the snapshot that must have changed before a new snapshot is made in the background."""
    rebuild_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Seconds between two checks of that share."""

    # Under load
    max_uploads: Annotated[int, Field(ge=1)] = 128
    """Most requests with a body at once; more get a 503 before their body is read."""
    max_uploads_mb: Annotated[float, Field(gt=0)] = 256.0
    """Most megabytes of request bodies at once; more get a 503. A single request is always accepted."""
    min_upload_rate: Annotated[float, Field(gt=0)] = 16.0
    """Least kilobytes a second of a body, after `upload_grace_seconds`; a slower one gets a 408."""
    upload_grace_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Seconds that any body may take."""
    head_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Seconds for a request's head; then the connection is closed."""
    write_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that a client may leave its answer unread; then the connection is closed."""
    keep_alive_seconds: Annotated[int, Field(ge=1)] = 5
    """Seconds that an idle connection is kept open."""
    max_connections: Annotated[int, Field(ge=1)] = 512
    """Most connections at once; more get a 503 and are closed."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """Format of the log: auto is text on a terminal, and JSON otherwise."""

    # Access
    keys: Path | None = None
    """File of API keys; by default keys.json in the index's folder."""
    allowed_hosts: Names = ()
    """Host names under which the service may be requested; if none, see docs/security.md."""
    cors_origins: Names = ()
    """Origins (https://example.org) whose pages may use the service; * allows all."""
    trusted_proxies: Names = ()
    """Addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are trusted."""
    rate_limit: Annotated[float, Field(ge=0)] = 100.0
    """Sustained requests a second of one key, or of one address without a key; 0 sets no limit."""
    rate_burst: Annotated[int, Field(ge=1)] = 500
    """Requests that may come at once before this limit applies."""
    metrics: bool = True
    """Whether to serve /metrics."""
    metrics_address: Annotated[str | None, BeforeValidator(_address)] = None
    """Address and port (127.0.0.1:9100) to serve /metrics on, without a key, instead of the service's own."""

    # The page
    map_tiles: str | None = None
    """URL template of map tiles, with {z}, {x} and {y}; without it, maps show a grid."""
    map_attribution: str = ""
    """Attribution of the tiles on the page."""

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
        """Load settings: given values that are not None, then the environment, then defaults.

        Raises:
            ServiceError: a value is missing or wrong; the message names the setting.
        """
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            raise ServiceError(_sentence(error)) from None

    @property
    def keys_file(self) -> Path:
        """Path of the keys file."""
        return self.keys or self.index / KEYS_FILE

    @property
    def metrics_here(self) -> bool:
        """Whether the service itself serves /metrics."""
        return self.metrics and self.metrics_address is None

    @property
    def max_upload_bytes(self) -> int:
        """The upload limit in bytes."""
        return int(self.max_upload_mb * 1_000_000)


def _sentence(error: ValidationError) -> str:
    problems = [(str(item["loc"][0]) if item["loc"] else "settings", item["msg"]) for item in error.errors()]
    return "; ".join(f"setting {name} (LOCI_{name.upper()}): {message}" for name, message in problems)
