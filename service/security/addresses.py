"""Which addresses other machines reach, and which names a request may call the service by."""

import ipaddress
import re
import socket
from collections.abc import Collection

from service.errors import ServiceError

NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?\.?")


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Find the address to listen on; an empty host is every address.

    Raises:
        ServiceError: there is no such address.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ServiceError(f"the host {host!r} is not an address of this machine") from error
    family, *_, address = found[0]
    return family, (str(address[0]), int(address[1]))


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def split_host(header: str) -> str | None:
    """Give the name in a Host header, in small letters and without its port; None where it is none."""
    name, port = header, ""
    if header.startswith("["):
        name, closed, port = header[1:].partition("]")
        if not closed or not _is_ip(name):
            return None
    else:
        name, colon, port = header.partition(":")
        port = colon + port
        if not NAME.fullmatch(name):
            return None
    if port and not re.fullmatch(r":\d{0,5}", port, re.ASCII):
        return None
    return name.lower().rstrip(".")


def is_own_name(name: str) -> bool:
    """Whether a page of another site cannot have brought a browser here under this name.

    DNS rebinding needs a name that an attacker's name server answers for: neither an address, nor
    localhost, nor a name without a dot, which only this machine and its network resolve.
    """
    return _is_ip(name) or "." not in name or name.endswith(".localhost")


def is_allowed(name: str, allowed: Collection[str]) -> bool:
    """Whether a name is the service's own anyway, or one of those `allowed`; * allows every name."""
    return is_own_name(name) or "*" in allowed or name in {one.lower().rstrip(".") for one in allowed}


def client_group(address: str) -> str:
    """Give what counts as one client: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.IPv6Network((ip, 64), strict=False))
    return str(ip)


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
