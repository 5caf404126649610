"""Devices of other nodes in directories that are mounted here too: found by their ids, read through one lane.

The lane stands for this node's way to that file system: its storage NIC, as a rule. The file system may hang, and a
thread in it with it: nobody waits for such a one.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from kvstore.blocks.layout import Layout
from kvstore.errors import ChecksumMismatch, DeviceFailed, InvalidInput, VersionMismatch
from kvstore.node.disklane import DiskLane
from kvstore.node.storage.aligned import Bytes
from kvstore.node.storage.shared import SharedReader
from kvstore.node.threads import Threads
from kvstore.rpc.lanes import SHARED

_CLOSE_S = 0.5
log = logging.getLogger(__name__)


class SharedDevices:
    """Belongs to the event loop. roots: the directories in which devices lie."""

    def __init__(self, roots: Sequence[str], depth: int) -> None:
        self._roots = [Path(root) for root in roots]
        self._readers: dict[bytes, SharedReader] = {}
        self._searching: asyncio.Future[dict[bytes, SharedReader]] | None = None
        self._search_began_s = 0.0
        self._searches = Threads(1, f"{SHARED}-search")
        self.depth = depth
        self.lane = DiskLane(SHARED, depth)

    async def find(self, device_id: bytes, patience_s: float) -> SharedReader | None:
        """Its reader; None where no root has such a device, or they do not answer in time."""
        for _ in range(2):  # a search that others began may have passed before the device was there
            if device_id in self._readers:
                break
            search = self._search_under_way()
            await asyncio.wait({search}, timeout=patience_s + self._search_began_s - time.monotonic())
            if not search.done():
                log.warning("the shared directories do not answer")
                break
        return self._readers.get(device_id)

    def _search_under_way(self) -> "asyncio.Future[dict[bytes, SharedReader]]":
        if self._searching is None:
            self._search_began_s = time.monotonic()
            self._searching = asyncio.wrap_future(self._searches.submit(self._search))
            self._searching.add_done_callback(self._searched)
        return self._searching

    def _searched(self, search: "asyncio.Future[dict[bytes, SharedReader]]") -> None:
        self._searching = None
        if not search.cancelled():
            self._readers |= search.result()

    def read(
        self,
        reader: SharedReader,
        file: int,
        offset: int,
        key: bytes,
        generation: int,
        layout: Layout,
        start: int,
        out: Bytes,
    ) -> "asyncio.Future[None]":
        """Reads and verifies whole granules of a block in the lane's turn; `out` is in use until the future is done.

        The future raises what `SharedReader.read_block` does. Raises InvalidInput for a range that is not of whole
        granules."""
        if start % layout.granule_bytes or (out.size % layout.granule_bytes and start + out.size != layout.block_bytes):
            raise InvalidInput(f"{start}+{out.size} are no whole granules of {layout}")

        def work() -> None:
            reader.read_block(file, offset, key, generation, layout, start, out)

        return self.lane.submit(out.size, work)

    async def close(self) -> None:
        self._searches.end()
        await self.lane.close(_CLOSE_S)

    def _search(self) -> dict[bytes, SharedReader]:
        found: dict[bytes, SharedReader] = {}
        for root in self._roots:
            try:
                directories = [path for path in root.iterdir() if path.is_dir()]
            except OSError as error:
                log.warning("%s: %s", root, error.strerror)
                continue
            for path in directories:
                try:
                    reader = SharedReader(path)
                except (ChecksumMismatch, DeviceFailed, VersionMismatch) as error:
                    log.debug("%s: %s", path, error)
                else:
                    found[reader.device_id] = reader
        return found
