"""API keys: created once, stored as hashes in a file, checked at each request.

A key is 256 random bits, so one SHA-256 is enough; slow, salted hashes are for passwords. A request's key is
compared with every entry in constant time.
"""

import hashlib
import hmac
import json
import logging
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from model.files import atomic_write
from service.errors import KeysUnreadable, ServiceError

logger = logging.getLogger(__name__)

PREFIX = "loci_"
FORMAT = 1
KEY_BYTES = 32
MODE = 0o600
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Role(StrEnum):
    """Role of a key; write includes read."""

    READ = "read"
    WRITE = "write"

    def opens(self, role: "Role") -> bool:
        """Whether this role is enough for `role`."""
        return self is role or self is Role.WRITE


@dataclass(frozen=True, slots=True)
class Key:
    """The stored entry of a key, without the key itself."""

    name: str
    role: Role
    sha256: str
    """SHA-256 of the key as it is sent, in hexadecimal."""
    created_at: str
    """ISO 8601, UTC."""


class KeyFile:
    """The file of keys. `create` and `remove` may run beside a service and each other."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[Key, ...]:
        """Return the entries; empty if there is no file.

        Raises:
            ServiceError: the file cannot be read or is damaged.
        """
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise ServiceError(f"the keys file {self.path} cannot be read: {error.strerror}") from error
        try:
            return _parse(text)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ServiceError(
                f"the keys file {self.path} is damaged: restore it, or remove it and create the keys anew"
            ) from error

    def create(self, name: str, role: Role) -> str:
        """Create a key and return it; it cannot be read again.

        Raises:
            ServiceError: the name exists or is invalid, or the file cannot be read or written.
        """
        if not NAME.fullmatch(name):
            raise ServiceError(
                f"{name!r} names no key: take 1 to 64 letters, digits, . _ @ -, a letter or digit first"
            )
        key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._held():
            keys = self.read()
            if any(one.name == name for one in keys):
                raise ServiceError(f"there is a key named {name} already: remove it first, or choose another")
            self._write((*keys, Key(name, role, digest(key), now)))
        return key

    def remove(self, name: str) -> None:
        """Remove a key; it is refused from now on.

        Raises:
            ServiceError: there is no such key, or the file cannot be read or written.
        """
        with self._held():
            keys = self.read()
            rest = tuple(key for key in keys if key.name != name)
            if len(rest) == len(keys):
                raise ServiceError(f"there is no key named {name} in {self.path}")
            self._write(rest)

    @contextmanager
    def _held(self) -> Iterator[None]:
        if not self.path.parent.is_dir():
            raise ServiceError(f"there is no folder {self.path.parent} to keep the keys in")
        lock = FileLock(f"{self.path}.lock", mode=MODE)
        try:
            lock.acquire(timeout=10)
        except Timeout:
            raise ServiceError(f"the keys file {self.path} is being changed by another process") from None
        except OSError as error:
            raise ServiceError(f"cannot write {self.path}: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    def _write(self, keys: tuple[Key, ...]) -> None:
        text = json.dumps({"format": FORMAT, "keys": [asdict(key) for key in keys]}, indent=2) + "\n"
        try:
            with atomic_write(self.path, MODE) as partial:
                partial.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ServiceError(f"cannot write {self.path}: {error.strerror}") from error


class KeyRing:
    """The keys of a running service: a change of the file applies to the next request.

    If the file is damaged, or vanishes, requests that may need a key are refused until it is whole again.
    """

    def __init__(self, path: Path) -> None:
        self._file = KeyFile(path)
        self._lock = threading.Lock()
        self._state: object = None
        self._keys: tuple[Key, ...] = ()
        self._trouble: str | None = None
        self._seen = False

    def keys(self) -> tuple[Key, ...]:
        """Return the current entries.

        Raises:
            KeysUnreadable: the file cannot be read, is damaged, or has vanished.
        """
        with self._lock:
            state = self._look()
            if state != self._state:
                self._load(state)
            if self._trouble is not None:
                raise KeysUnreadable(self._trouble)
            return self._keys

    def trouble(self) -> str | None:
        """Return what is wrong with the file, or None."""
        try:
            self.keys()
        except KeysUnreadable as error:
            return str(error)
        return None

    def find(self, key: str) -> Key | None:
        """Return the entry of a key, in constant time."""
        asked = digest(key)
        found = None
        for entry in self.keys():
            if hmac.compare_digest(entry.sha256, asked):
                found = entry
        return found

    def _look(self) -> object:
        try:
            stat = self._file.path.stat()
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            return error.errno
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _load(self, state: object) -> None:
        self._state = state
        try:
            self._keys = self._file.read()
            self._trouble = None
            if state == "missing" and self._seen:
                self._trouble = f"the keys file {self._file.path} has vanished"
            self._seen = self._seen or state != "missing"
        except ServiceError as error:
            self._keys, self._seen, self._trouble = (), True, str(error)
        if self._trouble is not None:
            logger.error("%s; refusing until it is whole again", self._trouble)


def digest(key: str) -> str:
    """Return the stored hash of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _parse(text: bytes) -> tuple[Key, ...]:
    content = json.loads(text)
    if content["format"] != FORMAT:
        raise ValueError("another format")
    keys = tuple(_entry(**entry) for entry in content["keys"])
    if len({key.name for key in keys}) != len(keys):
        raise ValueError("a name twice")
    return keys


def _entry(name: Any, role: Any, sha256: Any, created_at: Any) -> Key:
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise ValueError("no name")
    if not (isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256)):
        raise ValueError("no hash")
    return Key(name, Role(role), sha256, str(created_at))
