"""Runs the service as a process of its own."""

import contextlib
import errno
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn

from model.images import use_own_pixel_limit
from service.app import create_app
from service.errors import ServiceError
from service.settings import Settings

logger = logging.getLogger(__name__)


def serve(settings: Settings, *, announce: Callable[[str], None] | None = None) -> None:
    """Serve until interrupted or terminated; requests in progress are finished first.

    `announce` is called with the address once the port is taken, before the index is loaded.

    Raises:
        ServiceError: the address is taken, unknown or public without `insecure`; the index cannot be
            opened; the dispatcher died.
    """
    failures: list[Exception] = []
    with listen(settings) as listener:
        server = _server(settings, failures)
        url = _url(listener)
        logger.info("listening on %s", url)
        if announce is not None:
            announce(url)
        with _ending_well():
            server.run(sockets=[listener])
    if failures:
        raise ServiceError(str(failures[0]) or type(failures[0]).__name__) from failures[0]


@contextlib.contextmanager
def listen(settings: Settings) -> Iterator[socket.socket]:
    """Take the port, and give it back on leaving.

    Raises:
        ServiceError: it cannot be taken, or should not.
    """
    family, address = _resolve(settings)
    if not settings.insecure and not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
        raise ServiceError(
            f"{settings.host} can be reached from other machines and there are no API keys yet; "
            "keep to 127.0.0.1 behind a proxy, or use --insecure (LOCI_INSECURE=true)"
        )
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen()  # so that a second server on this port fails here, and early callers wait
        except OSError as error:
            raise ServiceError(_why_not(error, settings)) from error
        yield listener


def _resolve(settings: Settings) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise ServiceError(f"the host {settings.host!r} is not an address of this machine") from error
    family, *_, address = found[0]
    return family, (str(address[0]), int(address[1]))


def _why_not(error: OSError, settings: Settings) -> str:
    where = f"port {settings.port} on {settings.host}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use; stop what uses it or choose another with --port"
    if error.errno == errno.EACCES:
        return f"{where} needs privileges; choose one above 1023 with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"the host {settings.host!r} is not an address of this machine"
    return f"{where} cannot be listened on: {error.strerror}"


def _server(settings: Settings, failures: list[Exception]) -> uvicorn.Server:
    """Prepare a server that stops when the app cannot go on, and keeps the reason in `failures`."""

    def give_up(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    use_own_pixel_limit()
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings, on_failure=give_up),
            log_config=None,  # whoever runs the process sets logging up
            access_log=False,  # RequestLog writes one line a request
            server_header=False,
            timeout_graceful_shutdown=settings.shutdown_seconds,
            lifespan="on",
        )
    )
    return server


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _ending_well() -> Iterator[None]:
    """Let a graceful end be an end like any other: uvicorn raises its signal again after shutting down."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
