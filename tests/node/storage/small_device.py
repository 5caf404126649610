"""A device of a few slots, and short words for what tests do with it."""

from pathlib import Path

import numpy as np

from kvstore.node.storage.aligned import Bytes, aligned_empty
from kvstore.node.storage.clock import StoreClock
from kvstore.node.storage.device import Device, DeviceLimits
from kvstore.node.storage.disk import Disk
from kvstore.node.storage.entry import PLAIN, Entry
from kvstore.node.storage.format import SLAB_HEADER_BYTES, header_bytes, pack_slot_header
from kvstore.node.storage.index import Batch
from kvstore.node.storage.packing import granule_checksum

GRANULE_BYTES = 4096
GRANULES = 2
BLOCK_BYTES = GRANULES * GRANULE_BYTES
SLOT_BYTES = header_bytes(GRANULES) + BLOCK_BYTES
SLOTS = 4
SLAB_BYTES = SLOTS * SLOT_BYTES
TTL_MS = 3_600_000
NAMESPACE = b"namespace".ljust(16, b".")
TENANT = "tenant"


def limits(files: int = 4, free_bytes_min: int = 0) -> DeviceLimits:
    return DeviceLimits(files * (SLAB_HEADER_BYTES + SLAB_BYTES), SLAB_BYTES, free_bytes_min)


def open_device(
    path: Path, files: int = 4, *, disk: Disk | None = None, clock: StoreClock | None = None, free_bytes_min: int = 0
) -> Device:
    path.mkdir(exist_ok=True)
    return Device.open(path, limits(files, free_bytes_min), disk=disk, clock=clock)


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def block(number: int) -> Bytes:
    """The bytes of a block: its key says them."""
    out = aligned_empty(BLOCK_BYTES)
    out[:] = np.random.default_rng(number).integers(0, 256, BLOCK_BYTES, np.uint8)
    return out


def entry(number: int, generation: int = 1, deadline_ms: int = 2**62) -> Entry:
    raw = block(number)
    checksums = b"".join(granule_checksum(raw[at : at + GRANULE_BYTES]) for at in range(0, BLOCK_BYTES, GRANULE_BYTES))
    parent = key(number - 1) if number else b""
    return Entry(
        NAMESPACE, 0, 1, key(number), parent, number, generation, deadline_ms, TTL_MS, BLOCK_BYTES, BLOCK_BYTES, PLAIN,
        checksums, b"",
    )  # fmt: skip


def open_slab(device: Device, *, sync: bool = True, tenant: str = TENANT) -> int:
    """A file with its label in the index."""
    file, batch = device.take_file(), Batch()
    batch.open_slab(file, SLOT_BYTES, tenant, SLOTS)
    device.commit(batch, [(file, SLOT_BYTES, tenant)], [], sync=sync)
    return file


def write(device: Device, file: int, slot: int, written: Entry) -> None:
    """Header and bytes of the block that the entry's key names."""
    number = int.from_bytes(written.key, "big")
    device.write(file, slot * SLOT_BYTES, [pack_slot_header(written), block(number)])


def store(device: Device, file: int, slot: int, written: Entry, *, sync: bool = True) -> None:
    """Empties the slot, writes the block, and has the index name it."""
    batch = Batch()
    batch.drop(file, slot, written.generation)
    device.commit(batch, [], [], sync=sync)
    write(device, file, slot, written)
    batch = Batch()
    batch.put(file, slot, written)
    device.commit(batch, [], [file], sync=sync)


def read(device: Device, file: int, slot: int) -> Bytes:
    out = aligned_empty(BLOCK_BYTES)
    device.read(file, slot * SLOT_BYTES + header_bytes(GRANULES), out)
    return out


def is_proved(raw: Bytes, said: Entry) -> bool:
    """Whether the bytes are those that the entry's checksums say."""
    step = GRANULE_BYTES
    return b"".join(granule_checksum(raw[at : at + step]) for at in range(0, raw.size, step)) == said.checksums


def found(device: Device) -> dict[tuple[int, int], Entry]:
    """What survived: (file, slot) → entry."""
    return {(slab.file, slot): entry for slab in device.take_recovered() for slot, entry in slab.entries}
