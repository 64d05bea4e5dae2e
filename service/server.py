"""Run the service as a process."""

import contextlib
import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI
from prometheus_client import start_http_server

from model.images import use_own_pixel_limit
from service.app import create_app
from service.engine.engine import Engine
from service.errors import ServiceError
from service.security.access import Access
from service.security.addresses import resolve
from service.security.connections import HEAD_BYTES, Limits, protocol
from service.settings import Settings

logger = logging.getLogger(__name__)

LINGER_BYTES = 64_000_000
"""Bytes beyond the largest body that are read after an early answer, before the connection is cut."""
LAST_RESORT_SECONDS = 10
"""Seconds after the shutdown time until a failed process is killed."""


def serve(settings: Settings, *, announce: Callable[[str], None] | None = None) -> None:
    """Serve until interrupted or terminated; requests in progress are finished first.

    `announce` is called with the address when the port is taken, before the index is loaded.

    Raises:
        ServiceError: the address is in use, unknown, or public without `insecure`; the index cannot be
            opened; the dispatcher died.
    """
    failures: list[Exception] = []
    with listen(settings) as listener:
        server, engine = _server(settings, failures)
        with _metrics_beside(settings, engine):
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
    """Take the port, and release it at the end.

    Raises:
        ServiceError: the port cannot be taken, or must not be.
    """
    family, address = resolve(settings.host, settings.port)
    Access(settings).check_start(settings.host or "every address")
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen()  # so that a second server on this port fails here, and early clients wait
        except OSError as error:
            raise ServiceError(_why_not(error, settings)) from error
        yield listener


def _why_not(error: OSError, settings: Settings) -> str:
    where = f"port {settings.port} on {settings.host}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use; stop what uses it or choose another with --port"
    if error.errno == errno.EACCES:
        return f"{where} needs privileges; choose one above 1023 with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"the host {settings.host!r} is not an address of this machine"
    return f"{where} cannot be listened on: {error.strerror}"


def configure(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Configure uvicorn: its limits, and the proxies it trusts."""
    engine: Engine = app.state.engine
    limits = Limits(
        head_seconds=settings.head_seconds,
        write_seconds=settings.write_seconds,
        linger_seconds=settings.upload_grace_seconds,
        linger_bytes=settings.max_upload_bytes + LINGER_BYTES,
        connections=settings.max_connections,
    )
    return uvicorn.Config(
        app,
        http=protocol(limits, engine.metrics.no_request),
        ws="none",
        h11_max_incomplete_event_size=HEAD_BYTES,
        log_config=None,  # the process configures logging
        access_log=False,  # RequestLog logs requests
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        lifespan="on",
    )


def _server(settings: Settings, failures: list[Exception]) -> tuple[uvicorn.Server, Engine]:
    """Return a server that stops if the app cannot continue; `failures` gets the reason."""

    def give_up(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True
        if engine.dispatcher.stuck:
            _end_by_force(settings)

    use_own_pixel_limit()
    app = create_app(settings, on_failure=give_up)
    engine: Engine = app.state.engine
    server = uvicorn.Server(configure(app, settings))
    engine.metrics.watch(
        "loci_connections", "Open connections.", lambda: len(server.server_state.connections)
    )
    return server, engine


def _end_by_force(settings: Settings) -> None:
    """End the process even if a thread hangs in the device's driver."""
    timer = threading.Timer(settings.shutdown_seconds + LAST_RESORT_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


@contextlib.contextmanager
def _metrics_beside(settings: Settings, engine: Engine) -> Iterator[None]:
    """Serve the metrics on their own address, if the settings have one.

    Raises:
        ServiceError: the address cannot be used.
    """
    if not settings.metrics or settings.metrics_address is None:
        yield
        return
    host, _, port = settings.metrics_address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), engine.metrics.registry)
    except OSError as error:
        reason = error.strerror or error
        raise ServiceError(f"the metrics cannot be served on {settings.metrics_address}: {reason}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _ending_well() -> Iterator[None]:
    """Ignore the signal that uvicorn raises again after a graceful shutdown."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
