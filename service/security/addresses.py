"""Addresses that other machines can reach, and valid host names."""

import ipaddress
import re
import socket
from collections.abc import Collection

from service.errors import ServiceError

NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?\.?")


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Resolve the address to listen on; an empty host is every address.

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
    """Whether only this machine can reach an address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def split_host(header: str) -> str | None:
    """Return the name in a Host header, lower case and without port; None if it is invalid."""
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
    """Whether DNS rebinding is impossible with this name.

    It needs a name that an attacker's name server answers: not an address, not localhost, and not a name
    without a dot, which only the local network resolves.
    """
    return _is_ip(name) or "." not in name or name.endswith(".localhost")


def is_allowed(name: str, allowed: Collection[str]) -> bool:
    """Whether a name is safe anyway, or is in `allowed`; * allows every name."""
    return is_own_name(name) or "*" in allowed or name in {one.lower().rstrip(".") for one in allowed}


def client_group(address: str) -> str:
    """Return the client of an address: an IPv4 address, or an IPv6 network of 64 bits."""
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
