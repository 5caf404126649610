"""Blocks of a shared directory, and a process that owns one: it overwrites one slot again and again until it is fenced.

python -m tests.node.storage.shared_owner DIRECTORY
"""

import sys
from itertools import count
from pathlib import Path

import numpy as np

from kvstore.blocks.layout import LayerGroup, Layout
from kvstore.errors import DeviceFailed
from kvstore.node.storage.aligned import Bytes, aligned_empty
from kvstore.node.storage.clock import StoreClock
from kvstore.node.storage.device import DeviceLimits
from kvstore.node.storage.entry import PLAIN, Entry
from kvstore.node.storage.format import SLAB_HEADER_BYTES, header_bytes, pack_slot_header
from kvstore.node.storage.index import Batch
from kvstore.node.storage.packing import Packed, pack
from kvstore.node.storage.shared import SharedDevice
from kvstore.policy.slots import slot_bytes

GROUP = LayerGroup(layers=3, page_tokens=64, page_bytes=163_840, dtype="bfloat16", tensors=1, packing="packed")
LAYOUT = Layout(groups=(GROUP,))
SLOT_BYTES = header_bytes(LAYOUT.granules) + slot_bytes(LAYOUT.block_bytes)
SLOTS = 3
SLAB_BYTES = SLOTS * SLOT_BYTES
TTL_MS = 3_600_000


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def block(number: int) -> Bytes:
    """A block's bytes: small numbers, so that they compress."""
    out = aligned_empty(LAYOUT.block_bytes)
    out[:] = np.random.default_rng(number).integers(0, 16, LAYOUT.block_bytes, np.uint8)
    return out


def packed(number: int, codec: int) -> Packed:
    slot = aligned_empty(slot_bytes(LAYOUT.block_bytes))
    slot[:] = 0
    slot[: LAYOUT.block_bytes] = block(number)
    return pack(slot, LAYOUT, b"", codec)


def open_owner(path: Path, owner: str = "owner", *, grace_ms: int = 0, clock: StoreClock | None = None) -> SharedDevice:
    limits = DeviceLimits(2 * (SLAB_HEADER_BYTES + SLAB_BYTES), SLAB_BYTES, 0)
    path.mkdir(parents=True, exist_ok=True)
    return SharedDevice.open_shared(path, limits, owner, grace_ms=grace_ms, clock=clock)


def open_slab(device: SharedDevice) -> int:
    file, batch = device.take_file(), Batch()
    batch.open_slab(file, SLOT_BYTES, "tenant", SLOTS)
    device.commit(batch, [(file, SLOT_BYTES, "tenant")], [], sync=True)
    return file


def drop(device: SharedDevice, file: int, slot: int, generation: int) -> None:
    batch = Batch()
    batch.drop(file, slot, generation)
    device.commit(batch, [], [], sync=True)


def put(
    device: SharedDevice,
    file: int,
    slot: int,
    number: int,
    *,
    codec: int = PLAIN,
    generation: int = 1,
    ttl_ms: int = TTL_MS,
) -> Entry:
    made = packed(number, codec)
    entry = Entry(
        namespace_id=bytes(16),
        shard_rank=0,
        shard_count=1,
        key=key(number),
        parent_key=b"",
        depth=0,
        generation=generation,
        deadline_ms=device.clock.now_ms() + ttl_ms,
        ttl_ms=ttl_ms,
        block_bytes=LAYOUT.block_bytes,
        stored_bytes=made.stored_bytes,
        codec=made.codec,
        checksums=made.checksums,
        stored=made.stored,
    )
    drop(device, file, slot, generation)
    device.write(file, slot * SLOT_BYTES, [pack_slot_header(entry), *made.parts])
    batch = Batch()
    batch.put(file, slot, entry)
    device.commit(batch, [], [file], sync=True)
    return entry


def main() -> None:
    with open_owner(Path(sys.argv[1])) as device:
        file = open_slab(device)
        put(device, file, 0, 7, generation=1)
        print("ready", flush=True)
        try:
            for generation in count(1):
                put(device, file, 1, generation % 4, generation=generation)
                print(generation, flush=True)
        except DeviceFailed as error:
            print(f"fenced: {error}", flush=True)


if __name__ == "__main__":
    main()
