"""What can be set about the service: by LOCI_… variables or in code; nothing else reads the environment."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import ServiceError


class Settings(BaseSettings):
    """The service's settings; each can be given as LOCI_ and its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="LOCI_", frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    index: Path
    """Folder of the index to serve."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    insecure: bool = False
    """Listen on an address that other machines reach, though there are no API keys."""
    device: str = "auto"
    """Where the network runs: auto, cpu, cuda, cuda:1 …"""
    precision: str = "auto"
    """Number format that the network runs in; auto takes the fastest safe one."""
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
    shutdown_seconds: Annotated[int, Field(ge=0)] = 30
    """How long requests in progress may take to finish on shutdown."""
    thumbnail_size: Annotated[int, Field(ge=16, le=4096)] = 320
    """Longest side of a thumbnail in pixels."""
    docs: bool = True
    """Whether to serve /docs and /openapi.json."""

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
    def max_upload_bytes(self) -> int:
        """The upload limit in bytes."""
        return int(self.max_upload_mb * 1_000_000)


def _sentence(error: ValidationError) -> str:
    problems = [(str(item["loc"][0]) if item["loc"] else "settings", item["msg"]) for item in error.errors()]
    return "; ".join(f"setting {name} (LOCI_{name.upper()}): {message}" for name, message in problems)
