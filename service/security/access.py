"""Who may read and who may write."""

from starlette.types import Scope

from service.errors import Forbidden, KeysUnreadable, ServiceError, Unauthorised
from service.security.addresses import client_group, is_loopback, resolve
from service.security.keys import Key, KeyRing, Role
from service.settings import Settings

CALLER = "loci.key"
"""Key in a request's scope: the API key that it came with."""


class Access:
    """Access rules: writing always needs a write key; reading is open or needs any key.

    Reading is open with `insecure`, or if only this machine can reach the service and no read key exists.
    """

    def __init__(self, settings: Settings) -> None:
        self._insecure = settings.insecure
        self._loopback = is_loopback(resolve(settings.host, settings.port)[1][0])
        self._ring = KeyRing(settings.keys_file)

    def check_start(self, host: str) -> None:
        """Refuse to listen on an address that others reach without any protection.

        Raises:
            ServiceError: it is unprotected, or the keys file is damaged.
        """
        try:
            keys = self._ring.keys()
        except KeysUnreadable as error:
            raise ServiceError(str(error)) from None
        if not (self._loopback or self._insecure or keys):
            raise ServiceError(
                f"{host} can be reached from other machines and there are no API keys yet; make one with "
                "'loci keys create NAME', keep to 127.0.0.1, or let everybody read with --insecure "
                "(LOCI_INSECURE=true)"
            )

    @property
    def reading_is_open(self) -> bool:
        """Whether reading needs no key.

        Raises:
            KeysUnreadable: the keys file is damaged.
        """
        if self._insecure:
            return True
        keys = self._ring.keys()
        return self._loopback and not any(key.role is Role.READ for key in keys)

    def trouble(self) -> str | None:
        """Return what is wrong with the keys, or None."""
        return self._ring.trouble()

    def identify(self, scope: Scope) -> Key | None:
        """Return the key of a request; None without a key, or if it is unknown."""
        sent = _bearer(scope)
        if sent is None:
            return None
        try:
            return self._ring.find(sent)
        except KeysUnreadable:
            return None

    def require(self, role: Role, key: Key | None) -> None:
        """Check a caller's role.

        Raises:
            Unauthorised: a key is needed.
            Forbidden: a key of another role is needed.
            KeysUnreadable: the keys file is damaged.
        """
        if role is Role.READ and self.reading_is_open:
            return
        self._ring.keys()
        if key is None:
            raise Unauthorised(f"this needs a key for {_doing(role)}; send it as 'Authorization: Bearer KEY'")
        if not key.role.opens(role):
            raise Forbidden(
                f"the key {key.name} is for {_doing(key.role)}, this needs one for {_doing(role)}"
            )


def caller_of(scope: Scope, key: Key | None) -> str:
    """Return the identity for rate limits: the key, otherwise the address."""
    if key is not None:
        return f"key {key.name}"
    client = scope.get("client")
    return client_group(client[0]) if client else "unknown"


def _doing(role: Role) -> str:
    return {Role.READ: "reading", Role.WRITE: "writing"}[role]


def _bearer(scope: Scope) -> str | None:
    sent = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(sent) != 1:
        return None
    scheme, _, key = sent[0].decode("latin-1").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None
