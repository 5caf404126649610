"""The `Locate` call: where blocks lie in a shared directory, pinned for a reader that mounts it."""

import secrets

import numpy as np

from kvstore.blocks.state import Outcome, Tier
from kvstore.errors import InvalidInput
from kvstore.node.catalog import PinnedBlock, ShardId
from kvstore.node.custody import Custody
from kvstore.node.tiers.nvme import NvmeTier
from kvstore.pb import node_pb2
from kvstore.rpc.keys import keys_of


def locate(
    custody: Custody, nvme: NvmeTier | None, request: node_pb2.LocateRequest, hold_ms_max: int
) -> node_pb2.LocateReply:
    """Pins; READY are blocks with a copy on NVMe, and only their places are told. Raises InvalidInput without one."""
    if nvme is None:
        raise InvalidInput("locate: this node has no device in a shared directory")
    now_ns = custody.clock()
    pins = custody.catalog.pin(
        request.namespace_id,
        ShardId(request.shard_rank, request.shard_count),
        keys_of(request.keys),
        [bool(flag) for flag in request.wanted],
        f"remote:{secrets.token_hex(4)}",
        now_ns,
        now_ns + min(request.hold_ms, hold_ms_max) * 1_000_000,
        prefer=Tier.NVME,
    )
    custody.settle()
    places = [_place(nvme, block) for block in pins.blocks]
    devices = sorted({place[0] for place in places if place is not None})
    known = [
        place is not None and bool(block and block.checksums) for place, block in zip(places, pins.blocks, strict=True)
    ]
    outcomes = [
        Outcome.MISSING if outcome is Outcome.READY and place is None else outcome
        for outcome, place in zip(pins.outcomes, places, strict=True)
    ]
    empty = (b"", 0, 0, 0)
    columns = [place or empty for place in places]
    return node_pb2.LocateReply(
        pin_id=pins.pin_id,
        outcomes=bytes(outcomes),
        devices=devices,
        device=bytes(devices.index(column[0]) if column[0] else 0 for column in columns),
        file=np.array([column[1] for column in columns], "<u4").tobytes(),
        offset=np.array([column[2] for column in columns], "<u8").tobytes(),
        generation=np.array([column[3] for column in columns], "<u8").tobytes(),
        checksums=b"".join(block.checksums for block, k in zip(pins.blocks, known, strict=True) if k and block),
        has_checksums=bytes(known),
    )


def _place(nvme: NvmeTier, block: PinnedBlock | None) -> tuple[bytes, int, int, int] | None:
    """(device, file, offset, generation) of a block on a device."""
    if block is None or block.place.tier is not Tier.NVME:
        return None
    device, file = nvme.whereabouts(block.place)
    return device, file, block.place.offset, block.place.generation
