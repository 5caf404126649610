"""HTTP servers beside gRPC: where they listen, and that they end with their process."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from kvstore.errors import ConfigError
from kvstore.rpc.bind import expect_accepted, is_local
from kvstore.rpc.channel import OPEN_DOOR

_REQUESTS_MAX = 256
_STOP_GRACE_S = 1
_BACKLOG = 128
log = logging.getLogger(__name__)


class HttpServer:
    """A running server of one ASGI application. `url`: of its root, with the port as chosen."""

    def __init__(self, listener: socket.socket, url: str, server: "_Server") -> None:
        self.url = url
        self._server = server
        self._serving = asyncio.create_task(server.serve([listener]), name=f"http {url}")

    @classmethod
    async def start(cls, setting: str, listen: str, application: Any, *, insecure: bool, warning: str) -> "HttpServer":
        """Serves at host:port. setting: the address's name in messages. warning: what everyone may do who reaches it.

        Raises ConfigError for an address that cannot be bound, or that other hosts reach without `insecure`.
        """
        listener = _bound(setting, listen, insecure=insecure, warning=warning)
        host, port = listener.getsockname()[:2]
        config = uvicorn.Config(
            application,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_REQUESTS_MAX,
            timeout_graceful_shutdown=_STOP_GRACE_S,
        )
        url = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
        return cls(listener, url, _Server(config))

    async def stop(self) -> None:
        """Ends all requests within a second or so. Idempotent."""
        self._server.should_exit = True
        await asyncio.gather(self._serving, return_exceptions=True)

    def __repr__(self) -> str:
        return f"HttpServer({self.url})"


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's affair."""
        yield


def _bound(setting: str, listen: str, *, insecure: bool, warning: str) -> socket.socket:
    host, colon, port = listen.rpartition(":")
    if not colon or listen.startswith("unix:") or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{setting} {listen}: HOST:PORT is needed")
    expect_accepted(setting, listen, insecure=insecure, door=OPEN_DOOR)
    host = host.removeprefix("[").removesuffix("]")
    try:
        listener = socket.create_server(
            (host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
        )
    except OSError as error:
        raise ConfigError(f"{setting}: cannot listen on {listen}: {error.strerror}") from error
    if not is_local(listen):
        log.warning("%s %s is insecure: everyone who reaches it may %s", setting, listen, warning)
    return listener
