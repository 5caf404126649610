"""HTTP servers beside gRPC: where they listen, and that they end with their process."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from kvstore.config import DoorConfig
from kvstore.errors import ConfigError
from kvstore.rpc.bind import expect_accepted, is_local
from kvstore.rpc.https import ClientsOnly, server_context
from kvstore.rpc.in_time import InTime

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
    async def start(
        cls,
        setting: str,
        listen: str,
        application: Any,
        *,
        insecure: bool,
        warning: str,
        door: DoorConfig | None = None,
    ) -> "HttpServer":
        """Serves at host:port. setting: the address's name in messages. door: where it is shut, connections are
        encrypted, and only those come in who show a client's certificate, or, where the door has tokens, none: then the
        application asks for one; None: there is no door to shut. warning: what everyone may do who reaches an open one.

        Raises ConfigError for an address that cannot be bound, or that other hosts reach through an open door without
        `insecure`, and for certificates that are none.
        """
        context = server_context(door) if door is not None and door.shut else None
        listener = _bound(setting, listen, insecure=insecure, door=door)
        if context is None and not is_local(listen):
            log.warning("%s %s is insecure: everyone who reaches it may %s", setting, listen, warning)
        host, port = listener.getsockname()[:2]
        config = uvicorn.Config(
            application,
            http=InTime if context is None else ClientsOnly,
            ssl_context_factory=None if context is None else lambda config, default: context,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,  # it is uvicorn's main loop that renews it
            proxy_headers=False,
            limit_concurrency=_REQUESTS_MAX,
            timeout_graceful_shutdown=_STOP_GRACE_S,
        )
        scheme = "http" if context is None else "https"
        url = f"{scheme}://[{host}]:{port}/" if ":" in host else f"{scheme}://{host}:{port}/"
        return cls(listener, url, _Server(config))

    async def stop(self) -> None:
        """Ends all requests within a second or so. Idempotent."""
        self._server.ask_to_stop()
        await asyncio.gather(self._serving, return_exceptions=True)

    def __repr__(self) -> str:
        return f"HttpServer({self.url})"


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def ask_to_stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        """Until it is to stop. uvicorn's own looks for that ten times a second, in a process that serves others."""
        await self._stopping.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's affair."""
        yield


def _bound(setting: str, listen: str, *, insecure: bool, door: DoorConfig | None) -> socket.socket:
    expect_accepted(setting, listen, insecure=insecure, door=door, sockets=False)
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        return socket.create_server(
            (host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
        )
    except OSError as error:
        raise ConfigError(f"{setting}: cannot listen on {listen}: {error.strerror}") from error
