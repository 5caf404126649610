"""The page's HTTP server: started and stopped with the control plane."""

import logging
from collections.abc import Callable

from kvstore.config import DoorConfig
from kvstore.control.page.feed import Feed
from kvstore.control.page.site import make_site
from kvstore.control.page.source import Source
from kvstore.control.page.viewers import Viewers
from kvstore.rpc.bind import is_local
from kvstore.rpc.certificates import Role
from kvstore.rpc.http import HttpServer
from kvstore.rpc.tokens import KnownTokens

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "[::1]", Role.CONTROL.value)
log = logging.getLogger(__name__)


class PageServer:
    """A running page. `url`: where a browser finds it."""

    def __init__(self, server: HttpServer, feed: Feed, source: Source) -> None:
        self.url = server.url
        self._server = server
        self._feed = feed
        self._source = source

    @classmethod
    async def start(
        cls,
        listen: str,
        source: Source,
        *,
        insecure: bool,
        interval_ms: int,
        clock: Callable[[], int],
        door: DoorConfig,
    ) -> "PageServer":
        """Shows what `source` tells, which is the page's from now on, through the control plane's own door.

        Raises ConfigError for an address that cannot be bound, or that other hosts reach through an open door without
        `insecure`.
        """
        feed = Feed(source.look, source.watch, interval_ms, clock)
        viewers = Viewers(KnownTokens(door.tokens)) if door.tokens else None
        site = make_site(feed, source, _LOCAL_HOSTS if is_local(listen) else ("*",), viewers)
        try:
            server = await HttpServer.start(
                "control.page", listen, site, insecure=insecure, warning="read what the cluster tells", door=door
            )
        except BaseException:
            await feed.close()
            await source.close()
            raise
        log.info("page on %s", server.url)
        return cls(server, feed, source)

    async def stop(self) -> None:
        """Ends all streams and requests within a second or so. Idempotent."""
        await self._feed.close()
        await self._server.stop()
        await self._source.close()

    def __repr__(self) -> str:
        return f"PageServer({self.url})"
