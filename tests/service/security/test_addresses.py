"""Names and addresses."""

import pytest

from service.security.addresses import client_group, is_allowed, is_loopback, split_host


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"),
        ("LOCALHOST:8000", "localhost"),
        ("127.0.0.1:8000", "127.0.0.1"),
        ("[::1]:8000", "::1"),
        ("[::1]", "::1"),
        ("example.org.", "example.org"),
        ("my_service:80", "my_service"),
        ("x:", "x"),
        ("", None),
        (":80", None),
        ("[::1", None),
        ("[x]:1", None),
        ("a b", None),
        ("x<script>y", None),
        ("x:port", None),
        ("x:1:2", None),
        ("::1", None),
        ("user@x", None),
        ("x/y", None),
        ("x:٣", None),
    ],
)
def test_a_host_header_names_a_host_or_nothing(header: str, name: str | None) -> None:
    assert split_host(header) == name


@pytest.mark.parametrize("name", ["localhost", "a.localhost", "127.0.0.1", "10.1.2.3", "::1", "service"])
def test_local_names_are_allowed(name: str) -> None:
    assert is_allowed(name, ())


@pytest.mark.parametrize("name", ["rebind.example.org", "localhost.example.org", "127.0.0.1.example.org"])
def test_other_names_are_allowed_where_they_are_listed(name: str) -> None:
    assert not is_allowed(name, ())
    assert not is_allowed(name, ("example.org",))
    assert is_allowed(name, (name.upper() + ".",))
    assert is_allowed(name, ("*",))


def test_loopback() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.9.9.9")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("::")
    assert not is_loopback("fe80::1%eth0")


def test_client_is_an_address_or_ipv6_network() -> None:
    assert client_group("192.0.2.7") == "192.0.2.7"
    assert client_group("::ffff:192.0.2.7") == "192.0.2.7"
    assert client_group("2001:db8:1:2:3:4:5:6") == client_group("2001:db8:1:2:9::") == "2001:db8:1:2::/64"
    assert client_group("testclient") == "testclient"
