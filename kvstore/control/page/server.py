"""The page's HTTP server: started and stopped with the control plane."""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from kvstore.config import DoorConfig
from kvstore.control.page.feed import Feed
from kvstore.control.page.site import make_site
from kvstore.control.page.source import Source
from kvstore.errors import ConfigError
from kvstore.rpc.bind import expect_accepted, is_local
from kvstore.rpc.channel import OPEN_DOOR

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "[::1]")
_REQUESTS_MAX = 256
_STOP_GRACE_S = 1
_BACKLOG = 128
log = logging.getLogger(__name__)


class PageServer:
    """A running page. `url`: where a browser finds it."""

    def __init__(self, listener: socket.socket, url: str, server: "_Server", feed: Feed, source: Source) -> None:
        self.url = url
        self._server = server
        self._feed = feed
        self._source = source
        self._serving = asyncio.create_task(server.serve([listener]), name="page")

    @classmethod
    async def start(
        cls, listen: str, control: str, *, insecure: bool, interval_ms: int, clock: Callable[[], int], door: DoorConfig
    ) -> "PageServer":
        """Shows the control plane at the address `control`.

        Raises ConfigError for an address that cannot be bound, or that other hosts reach without `insecure`.
        """
        listener = _bound(listen, insecure=insecure)
        source = Source(control, door)
        feed = Feed(source.look, interval_ms, clock)
        host, port = listener.getsockname()[:2]
        site = make_site(feed, source, _LOCAL_HOSTS if is_local(listen) else ("*",))
        config = uvicorn.Config(
            site,
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
        log.info("page on %s", url)
        return cls(listener, url, _Server(config), feed, source)

    async def stop(self) -> None:
        """Ends all streams and requests within a second or so. Idempotent."""
        await self._feed.close()
        self._server.should_exit = True
        await asyncio.gather(self._serving, return_exceptions=True)
        await self._source.close()

    def __repr__(self) -> str:
        return f"PageServer({self.url})"


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's affair."""
        yield


def _bound(listen: str, *, insecure: bool) -> socket.socket:
    host, colon, port = listen.rpartition(":")
    if not colon or listen.startswith("unix:") or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"control.page {listen}: HOST:PORT is needed")
    expect_accepted("control.page", listen, insecure=insecure, door=OPEN_DOOR)
    host = host.removeprefix("[").removesuffix("]")
    try:
        listener = socket.create_server(
            (host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
        )
    except OSError as error:
        raise ConfigError(f"control.page: cannot listen on {listen}: {error.strerror}") from error
    if not is_local(listen):
        log.warning("control.page %s is insecure: everyone who reaches it may read what the cluster tells", listen)
    return listener
