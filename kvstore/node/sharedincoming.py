"""Blocks that another node owns and this one reads itself, from a directory that both mount.

The owner pins them and says where they lie; what is read is proved by the slot's header, before and after, and by
checksums. So the owner's bytes cross this node's storage NIC without passing through the owner.

The file system may hang, and a thread in a read cannot be stopped. So a read has a time: past it the path is given up,
its pieces come elsewhere, and nobody waits for the thread; only the memory that it may still write to does.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import NamedTuple

import grpc.aio
import numpy as np

from kvstore.blocks.layout import Layout
from kvstore.blocks.state import Outcome, Tier
from kvstore.config import NodeConfig
from kvstore.errors import ChecksumMismatch, DeviceFailed, KVStoreError, NodeUnavailable, PeerLost, StaleGeneration
from kvstore.node.background import together
from kvstore.node.custody import Custody
from kvstore.node.disklane import disk_load
from kvstore.node.feed import Arrival, Feed
from kvstore.node.incoming import block_checksums
from kvstore.node.landers import Landed, Lander
from kvstore.node.pieces import Piece
from kvstore.node.portion import Portion
from kvstore.node.progress import SLOW_FACTOR
from kvstore.node.shared import SharedDevices
from kvstore.node.storage.shared import SharedReader
from kvstore.pb import node_pb2, node_pb2_grpc, types_pb2
from kvstore.policy.route import RATE_START_BYTES_PER_S
from kvstore.rpc.channel import caller
from kvstore.rpc.keys import keys_of
from kvstore.rpc.status import from_rpc

_UNPIN_S = 0.5
log = logging.getLogger(__name__)


class _Located(NamedTuple):
    reader: SharedReader
    file: int
    offset: int
    generation: int
    key: bytes


class SharedIncoming:
    """Does for a shared directory what `Incoming` does for a network; see there."""

    def __init__(
        self,
        config: NodeConfig,
        custody: Custody,
        lander: Lander,
        devices: SharedDevices,
        stub: "node_pb2_grpc.NodeAsyncStub",
        layout: Layout,
        name: str,
        portion: Portion | None = None,
    ) -> None:
        self._config = config
        self._custody = custody
        self.lander = lander
        self._devices = devices
        self.portion = portion or Portion(devices.lane)
        self._stub = stub
        self._layout = layout
        self._caller = caller(f"node {name}")
        self._pin_id = b""
        self._located: dict[int, _Located] = {}
        self._checksums: list[bytes] = []
        self._index: dict[int, int] = {}
        self._suspects = node_pb2.Suspects()
        self._damaged: dict[bytes, None] = {}
        self.pinned = node_pb2.TransferPinned()
        self.tiers: list[Tier] = []
        self.moves = 0
        self.broken = False  # there is no connection

    async def open(self, opened: node_pb2.TransferOpen, blocks: Sequence[int]) -> list[Outcome]:
        """Asks the owner where the blocks lie; READY for those that can be read from here. Raises as
        `Incoming.open`."""
        if self._devices.lane.hangs(self._limit_ns):
            raise NodeUnavailable("the shared directory moves nothing")
        self._index = {block: i for i, block in enumerate(blocks)}
        self._suspects = node_pb2.Suspects(
            namespace_id=opened.namespace_id, shard_rank=opened.shard_rank, shard_count=opened.shard_count
        )
        request = node_pb2.LocateRequest(
            caller=self._caller,
            namespace_id=opened.namespace_id,
            shard_rank=opened.shard_rank,
            shard_count=opened.shard_count,
            keys=opened.keys,
            wanted=opened.wanted,
            hold_ms=min(opened.deadline_ms, self._config.hold_ms_max),
        )
        try:
            reply = await self._stub.Locate(request, timeout=self._config.connect_ms / 1000)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, NodeUnavailable, "owner") from None
        self._pin_id = reply.pin_id
        keys = [key for key, flag in zip(keys_of(opened.keys), opened.wanted, strict=True) if flag]
        outcomes = await self._locate(reply, keys)
        self.tiers = [Tier.NVME] * len(outcomes)
        self._checksums = block_checksums(reply.checksums, reply.has_checksums, self._layout)
        self.pinned = node_pb2.TransferPinned(
            outcomes=bytes(outcomes),
            tiers=bytes(self.tiers),
            checksums=reply.checksums,
            has_checksums=reply.has_checksums,
            stored=bytes([1] * len(outcomes)),
        )
        return outcomes

    async def _locate(self, reply: node_pb2.LocateReply, keys: Sequence[bytes]) -> list[Outcome]:
        patience_s = self._config.connect_ms / 1000
        readers = [await self._devices.find(device_id, patience_s) for device_id in reply.devices]
        columns = zip(
            reply.outcomes,
            reply.device,
            np.frombuffer(reply.file, "<u4").tolist(),
            np.frombuffer(reply.offset, "<u8").tolist(),
            np.frombuffer(reply.generation, "<u8").tolist(),
            keys,
            strict=True,
        )
        outcomes = []
        for number, (outcome, device, file, offset, generation, key) in enumerate(columns):
            reader = readers[device] if outcome == Outcome.READY else None
            if reader is not None:
                self._located[number] = _Located(reader, file, offset, generation, key)
            elif outcome == Outcome.READY:
                outcome = Outcome.MISSING  # not mounted here
            outcomes.append(Outcome(outcome))
        return outcomes

    def way_load(self) -> types_pb2.LaneLoad:
        """Of this node's way to the directory, at this moment."""
        return disk_load(self._devices.lane)

    async def run(self, feed: Feed) -> None:
        """Brings pieces until the feed ends. Raises PeerLost when the directory moves nothing."""
        await together(self._work(feed) for _ in range(self._devices.depth))

    async def _work(self, feed: Feed) -> None:
        while (piece := await feed.next()) is not None:
            landed = await self.lander.land(piece)
            try:
                await self._read(piece, landed)
            except PeerLost:
                raise
            except KVStoreError as error:
                if isinstance(error, ChecksumMismatch):
                    self._found_damaged(piece, error)
                feed.refused(piece, _outcome_of(error))
            else:
                self.moves += 1
                self.lander.arrived(landed.place_id)
                feed.arrived(Arrival(piece, *landed, self._checksums_of(piece)))

    def _found_damaged(self, piece: Piece, error: ChecksumMismatch) -> None:
        key = self._located[self._index[piece.block]].key
        log.warning("block %s, read from a shared directory: %s", key.hex(), error)
        self._damaged[key] = None

    async def _read(self, piece: Piece, landed: Landed) -> None:
        """Raises why the piece is not there; its place is given back then, once no thread writes to it any more."""
        reading: asyncio.Future[None] | None = None
        self.portion.enter(piece.length)
        try:
            target = self._custody.view(landed.place, landed.offset, piece.length)
            located = self._located[self._index[piece.block]]
            reading = self._devices.read(
                *located[:3], located.key, located.generation, self._layout, piece.offset, target
            )
            await self._in_time(reading)
            reading.result()
        except BaseException:
            if reading is None or reading.done() or self._devices.lane.withdraw(reading):
                self.lander.give_back(landed.place_id)
            else:
                reading.add_done_callback(lambda done: self._ended_unseen(done, landed))
            raise
        finally:
            self.portion.leave(piece.length)

    async def _in_time(self, reading: "asyncio.Future[None]") -> None:
        """Until it is over. Raises PeerLost when a thread is at it for too long, or none of the others' gets ready."""
        lane, limit_ns = self._devices.lane, self._limit_ns
        while not reading.done():
            moves = lane.moves.count
            await asyncio.wait({reading}, timeout=(limit_ns - lane.age_ns(reading)) / 1e9)
            age_ns = lane.age_ns(reading)
            if not reading.done() and (age_ns >= limit_ns or (not age_ns and lane.moves.count == moves)):
                raise PeerLost(f"the shared directory moved nothing for {limit_ns // 1_000_000} ms")

    @property
    def _limit_ns(self) -> int:
        """A slow file system is not a dead one, see `Progress`; one that was fast, out of a cache, may become slow."""
        lane = self._devices.lane
        expected_s = SLOW_FACTOR * lane.running_bytes / min(lane.bytes_per_s, RATE_START_BYTES_PER_S)
        return self._config.progress_ms * 1_000_000 + int(expected_s * 1e9)

    def _ended_unseen(self, reading: "asyncio.Future[None]", landed: Landed) -> None:
        if not reading.cancelled():
            reading.exception()
        self.lander.give_back(landed.place_id)

    def _checksums_of(self, piece: Piece) -> bytes:
        return piece.checksums_of(self._checksums[self._index[piece.block]], self._layout)

    def report_corrupt(self, blocks: Sequence[int]) -> None:
        """What was read here was right when it was read: the owner is told of what was not."""

    async def settle(self) -> None:
        """Nothing is being read any more; the owner may have its slots back, and looks at what was damaged."""
        if self._pin_id:
            request = node_pb2.UnpinRequest(caller=self._caller, pin_id=self._pin_id)
            if self._damaged:
                self._suspects.keys = b"".join(self._damaged)
                request.suspects.CopyFrom(self._suspects)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self._stub.Unpin(request, timeout=_UNPIN_S)


def _outcome_of(error: KVStoreError) -> Outcome:
    if isinstance(error, ChecksumMismatch):
        return Outcome.CORRUPT
    if isinstance(error, StaleGeneration):
        return Outcome.STALE
    return Outcome.MISSING if isinstance(error, DeviceFailed) else Outcome.NODE_LOST
