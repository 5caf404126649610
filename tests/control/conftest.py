"""A real control plane on a unix socket, and a node's side of the protocol."""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from kvstore.blocks.digest import empty_digests, pack_digests, toggle
from kvstore.config import ControlConfig
from kvstore.control.app import ControlServer, serve
from kvstore.pb import admin_pb2_grpc, control_pb2, control_pb2_grpc, types_pb2
from kvstore.rpc.channel import caller, open_channel

DEADLINE_S = 10.0
NAMESPACE = bytes(range(16))
Place = tuple[bytes, int, int]  # key, shard rank, shard count


@dataclass
class FakeNode:
    """A node as the control plane sees it; `places` is what it holds, in DRAM."""

    stub: control_pb2_grpc.ControlStub
    node_id: str = "a"
    incarnation: int = 1
    sequence: int = 0
    remaining_ms: int = 60_000
    grpc: str = "unix:/nowhere/node.sock"
    places: set[Place] = field(default_factory=set)

    async def register(self, salt_check: bytes = b"") -> control_pb2.RegisterReply:
        address = types_pb2.NodeAddress(node_id=self.node_id, incarnation=self.incarnation, grpc=self.grpc)
        request = control_pb2.RegisterRequest(
            caller=caller("test"), address=address, roles=["prefill"], salt_check=salt_check
        )
        reply = await self.stub.Register(request, timeout=DEADLINE_S)
        self.sequence = max(self.sequence, reply.sequence)
        return reply

    async def heartbeat(self) -> bool:
        request = control_pb2.HeartbeatRequest(
            caller=caller("test"),
            node_id=self.node_id,
            incarnation=self.incarnation,
            lanes=[types_pb2.LaneLoad(lane="dram", queued_bytes=5)],
        )
        return (await self.stub.Heartbeat(request, timeout=DEADLINE_S)).known

    async def add(self, keys: Sequence[bytes], rank: int = 0, count: int = 1) -> control_pb2.PublishReply:
        self.places |= {(key, rank, count) for key in keys}
        return await self.publish([self.records(keys, rank, count)])

    async def withdraw(self, keys: Sequence[bytes], rank: int = 0, count: int = 1) -> control_pb2.PublishReply:
        self.places -= {(key, rank, count) for key in keys}
        return await self.publish([self.records(keys, rank, count, withdraw=True)])

    async def publish(
        self,
        records: Iterable[control_pb2.Records],
        replace_buckets: Sequence[int] = (),
        lanes: Sequence[types_pb2.LaneLoad] = (),
    ) -> control_pb2.PublishReply:
        self.sequence += 1
        request = control_pb2.PublishRequest(
            caller=caller("test"),
            node_id=self.node_id,
            incarnation=self.incarnation,
            sequence=self.sequence,
            records=records,
            replace_buckets=replace_buckets,
            lanes=lanes,
        )
        return await self.stub.Publish(request, timeout=DEADLINE_S)

    def records(self, keys: Sequence[bytes], rank: int, count: int, withdraw: bool = False) -> control_pb2.Records:
        remaining = b"" if withdraw else np.full(len(keys), self.remaining_ms, "<u4").tobytes()
        return control_pb2.Records(
            withdraw=withdraw,
            tier=types_pb2.TIER_DRAM,
            shard_rank=rank,
            shard_count=count,
            namespace_id=NAMESPACE,
            keys=b"".join(keys),
            remaining_ms=remaining,
        )

    async def compare(self) -> control_pb2.CompareBucketsReply:
        digests = empty_digests()
        for key, rank, count in self.places:
            toggle(digests, [key], types_pb2.TIER_DRAM, rank, count)
        request = control_pb2.CompareBucketsRequest(
            caller=caller("test"), node_id=self.node_id, incarnation=self.incarnation, digests=pack_digests(digests)
        )
        return await self.stub.CompareBuckets(request, timeout=DEADLINE_S)

    async def heal(self) -> list[int]:
        """Anti-entropy, as a node does it; the buckets that differed."""
        differing = list((await self.compare()).differing)
        if differing:
            held = [self.records([k], rank, count) for k, rank, count in self.places if k[0] in differing]
            await self.publish(held, differing)
        return differing


async def match(
    stub: control_pb2_grpc.ControlStub, keys: Sequence[bytes], shard_count: int = 1, reader: str = ""
) -> control_pb2.MatchReply:
    request = control_pb2.MatchRequest(
        caller=caller("test"),
        namespace_id=NAMESPACE,
        shard_count=shard_count,
        keys=b"".join(keys),
        reader_node_id=reader,
    )
    return await stub.Match(request, timeout=DEADLINE_S)


@pytest.fixture
def config(tmp_path: Path) -> ControlConfig:
    """Long silence and slow ticks: nothing happens by itself within a test."""
    return ControlConfig(
        listen=f"unix:{tmp_path}/control.sock",
        index_path=str(tmp_path / "index"),
        index_bytes_max=64 * 1024 * 1024,
        heartbeat_ms=60_000,
        node_lost_ms=60_000,
    )


@pytest.fixture
async def server(config: ControlConfig) -> AsyncIterator[ControlServer]:
    server = await serve(config)
    yield server
    await server.stop()


@pytest.fixture
async def channel(server: ControlServer) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(server.address) as channel:
        yield channel


@pytest.fixture
def control(channel: grpc.aio.Channel) -> control_pb2_grpc.ControlStub:
    return control_pb2_grpc.ControlStub(channel)


@pytest.fixture
def admin(channel: grpc.aio.Channel) -> admin_pb2_grpc.AdminStub:
    return admin_pb2_grpc.AdminStub(channel)


@pytest.fixture
def node(control: control_pb2_grpc.ControlStub) -> FakeNode:
    return FakeNode(control)
