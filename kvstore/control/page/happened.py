"""The newest events of the cluster, for viewers: one watch of all, taken up again when it is lost."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from itertools import islice
from typing import Any

from kvstore.errors import KVStoreError
from kvstore.pb import admin_pb2, types_pb2

SHOWN_MAX = 200
_AGAIN_S = 1.0
log = logging.getLogger(__name__)


class Happened:
    """Belongs to the event loop. watch: begins with so many that came before, and goes on until it is lost."""

    def __init__(self, watch: Callable[[int], AsyncIterator[admin_pb2.WatchReply]]) -> None:
        self._watch = watch
        self._shown: deque[dict[str, Any]] = deque(maxlen=SHOWN_MAX)
        self._running = asyncio.create_task(self._run(), name="page events")
        self.last = 0
        """How many there have been."""

    def after(self, number: int) -> list[dict[str, Any]]:
        """Those that came after so many of them, oldest first, as far as they are kept; JSON-safe."""
        fresh = min(self.last - number, len(self._shown))
        return list(islice(self._shown, len(self._shown) - fresh, None))

    async def close(self) -> None:
        """Idempotent."""
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        past = SHOWN_MAX
        while True:
            try:
                async for reply in self._watch(past):
                    past = 0
                    for event in reply.events:
                        self.last += 1
                        self._shown.append({"number": self.last, **_fields(event)})
            except KVStoreError as error:
                log.warning("page: events: %s", error)
            await asyncio.sleep(_AGAIN_S)


def _fields(event: types_pb2.Event) -> dict[str, Any]:
    return {"at_ms": event.at_ms, "node": event.node_id, "kind": event.kind, "text": event.text}
