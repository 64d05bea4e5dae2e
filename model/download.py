"""Downloads that can be interrupted: a temporary name, resumed, checked, renamed."""

from __future__ import annotations

import hashlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.errors import ModelError

TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20

Told = Callable[[int, int | None], None]
"""Called with the bytes so far, and the total if known."""


def download(url: str, path: Path, *, sha256: str | None = None, told: Told | None = None) -> str:
    """Fetch `url` to `path`; return its SHA-256.

    A partial download is kept at `path`.part with its version (ETag or date), and the next call resumes it.
    If the server has another version, or cannot resume, it starts over. The usual variables set a proxy
    (`https_proxy`, `http_proxy`, `no_proxy`).

    Raises:
        ModelError: no connection, another answer than the file, an interrupted connection, another checksum
            than `sha256`, a full disk. The message has the URL, and where to put the file by hand.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, version = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    try:
        _fetch(url, part, version, told)
    except urllib.error.HTTPError as error:
        reason = f"the server answers {error.code} {error.reason}"
        error.close()
        raise _failed(url, path, reason) from error
    except urllib.error.URLError as error:
        raise _failed(url, path, getattr(error.reason, "strerror", None) or str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _failed(url, path, str(error) or type(error).__name__) from error
    found = _sha256(part)
    if sha256 is not None and found != sha256:
        part.unlink()
        version.unlink(missing_ok=True)
        raise _failed(url, path, f"what came has SHA-256 {found}, not {sha256}, and was thrown away")
    part.replace(path)
    version.unlink(missing_ok=True)
    return found


def _fetch(url: str, part: Path, version: Path, told: Told | None) -> None:
    there = part.stat().st_size if part.exists() else 0
    known = _read_version(version, url)
    if there and not known:
        there = 0  # its version is unknown
    request = urllib.request.Request(url)
    if there and known:
        request.add_header("Range", f"bytes={there}-")
        request.add_header("If-Range", known)
    try:
        response = urllib.request.build_opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not there:
            raise
        error.close()  # the part is as long as the file, or longer: start over
        part.unlink()
        _fetch(url, part, version, told)
        return
    with response:
        resumed = response.status == 206 and _starts_at(response.headers, there)
        if not resumed:
            there = 0
        length = response.headers.get("Content-Length")
        total = there + int(length) if length else None
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        version.write_text(json.dumps({"url": url, "version": tag}), encoding="utf-8")
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                there += len(chunk)
                if told is not None:
                    told(there, total)
        if total is not None and there < total:
            raise OSError(
                f"the connection broke off after {there:,} of {total:,} bytes; the next try goes on"
            )


def _starts_at(headers: Any, there: int) -> bool:
    return str(headers.get("Content-Range", "")).startswith(f"bytes {there}-")


def _read_version(path: Path, url: str) -> str | None:
    """Return the version of the part; a weak ETag cannot resume (RFC 9110, 13.1.5)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["version"] if found["url"] == url else None
    except (OSError, ValueError, KeyError):
        return None
    return None if version is None or str(version).startswith("W/") else str(version)


def _failed(url: str, path: Path, reason: str) -> ModelError:
    return ModelError(f"cannot download {url}: {reason}; to fetch it another way, put the file at {path}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
