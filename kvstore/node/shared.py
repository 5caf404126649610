"""Devices of other nodes in directories that are mounted here too: found by their ids, read through one lane.

The lane stands for this node's way to that file system: its storage NIC, as a rule.
"""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from kvstore.blocks.layout import Layout
from kvstore.errors import ChecksumMismatch, DeviceFailed, InvalidInput, VersionMismatch
from kvstore.node.disklane import DiskLane
from kvstore.node.storage.aligned import Bytes
from kvstore.node.storage.shared import SharedReader
from kvstore.rpc.lanes import SHARED

log = logging.getLogger(__name__)


class SharedDevices:
    """Belongs to the event loop. roots: the directories in which devices lie."""

    def __init__(self, roots: Sequence[str], depth: int) -> None:
        self._roots = [Path(root) for root in roots]
        self._readers: dict[bytes, SharedReader] = {}
        self._searching = asyncio.Lock()
        self.depth = depth
        self.lane = DiskLane(SHARED, depth)

    async def find(self, device_id: bytes) -> SharedReader | None:
        """Its reader; None where no root has such a device."""
        if device_id not in self._readers:
            async with self._searching:
                if device_id not in self._readers:
                    self._readers |= await asyncio.to_thread(self._search)
        return self._readers.get(device_id)

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
        await self.lane.close()

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
