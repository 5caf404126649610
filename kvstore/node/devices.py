"""The directories of the NVMe tier: opened before the node serves, and what they had taken into the catalog."""

import asyncio
import gc
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kvstore.blocks.state import Tier
from kvstore.config import NodeConfig
from kvstore.errors import ChecksumMismatch, ConfigError, DeviceFailed, InvalidInput
from kvstore.node.adopt import Adoption
from kvstore.node.catalog import Catalog
from kvstore.node.retention import Retention
from kvstore.node.storage.device import Device, DeviceLimits
from kvstore.node.storage.entry import PLAIN
from kvstore.node.storage.format import SLAB_HEADER_BYTES
from kvstore.node.storage.manifest import Manifest
from kvstore.node.storage.served import ServedDevice
from kvstore.node.storage.shared import SharedDevice
from kvstore.node.tiers.nvme import NvmeTier
from kvstore.policy.slots import BankedSpace, SizeClass, SlotSpace

log = logging.getLogger(__name__)


def limits_of(config: NodeConfig) -> DeviceLimits:
    """Of each device. Raises ConfigError."""
    return DeviceLimits(config.nvme_bytes, config.nvme_slab_bytes, config.nvme_free_bytes_min)


async def open_devices(config: NodeConfig) -> list[tuple[Path, Device | None]]:
    """All directories of the config, each with its device; None for one that fails: the node does without it.

    Raises ConfigError, for a directory that is named twice or held by another process too, and VersionMismatch."""
    paths = [Path(path) for path in config.nvme_paths]
    if len({path.absolute() for path in paths}) != len(paths):
        raise ConfigError("nvme_paths: a directory is named twice")
    if not paths:
        return []
    opening = [asyncio.to_thread(open_device, path, config) for path in paths]
    outcomes = await asyncio.gather(*opening, return_exceptions=True)
    devices = [outcome if isinstance(outcome, Device) else None for outcome in outcomes]
    for path, outcome in zip(paths, outcomes, strict=True):
        if isinstance(outcome, DeviceFailed):
            log.error("%s is out of service: %s", path, outcome)
        elif isinstance(outcome, BaseException):
            await close_devices(devices)
            raise outcome
    return list(zip(paths, devices, strict=True))


async def close_devices(devices: Iterable[Device | None]) -> None:
    for device in devices:
        if device is not None:
            await asyncio.to_thread(device.close)


def open_device(path: Path, config: NodeConfig) -> Device:
    """Blocks. Raises ConfigError, VersionMismatch, DeviceFailed."""
    limits = limits_of(config)
    with paused_collector():
        if config.nvme_shared:
            if not config.node_id:
                raise ConfigError(
                    "nvme_shared: the node needs a name that stays (node_id), for others ask who has what"
                )
            return SharedDevice.open_shared(path, limits, config.node_id)
        return Device.open(path, limits)


def capacity_of(device: ServedDevice | None) -> int:
    """Bytes that its slab files may take."""
    return 0 if device is None else device.files_max * (SLAB_HEADER_BYTES + device.slab_bytes)


def space_of(devices: Sequence[Device | None], slab_bytes: int, slab_ids: Iterator[int]) -> BankedSpace:
    """The tier's slots: a bank per device."""
    banks = [
        SlotSpace(capacity_of(device), slab_bytes, slab_ids, file_overhead_bytes=SLAB_HEADER_BYTES, bank=number)
        for number, device in enumerate(devices)
    ]
    for bank, device in zip(banks, devices, strict=True):
        bank.in_service = device is not None
    return BankedSpace(banks)


async def adopt(
    catalog: Catalog, retention: Retention, nvme: NvmeTier, now_ns: int, banks: Sequence[int] | None = None
) -> None:
    """Brings what devices had into the catalog, and the namespaces that it is of. Nothing is read of the blocks."""
    began_ns = time.monotonic_ns()
    chosen = [bank for bank in nvme.banks if bank.in_service and (banks is None or bank.number in banks)]
    for bank in chosen:
        await _open_namespaces(retention, bank.path)
    with paused_collector():
        adoption = catalog.adopt(Tier.NVME, now_ns)
        for bank in chosen:
            _adopt_device(adoption, nvme, bank.number, bank.device)
        count = adoption.finish()
    log.info("%d blocks adopted in %d ms", count, (time.monotonic_ns() - began_ns) // 1_000_000)


def _adopt_device(adoption: Adoption, nvme: NvmeTier, bank: int, device: ServedDevice) -> None:
    store_now_ms = device.clock.now_ms()
    for slab in device.take_recovered():
        size_class = SizeClass(slab.tenant, slab.slot_bytes)
        slab_id, rejected = adoption.add(bank, size_class, slab.generations.tolist(), slab.entries, store_now_ms)
        nvme.adopt_slab(slab_id, bank, slab.file, slab.slot_bytes, slab.tenant)
        for slot, entry in slab.entries:
            if entry.codec != PLAIN:
                nvme.adopt_stored(slab_id, slot, entry)
        for slot, generation in rejected:
            nvme.forget(slab_id, slot, generation)


async def _open_namespaces(retention: Retention, path: Path) -> None:
    try:
        known = await Manifest(path).load()
    except ChecksumMismatch as error:
        log.error("%s: its blocks are lost: %s", path, error)
        return
    for namespace in known:
        try:
            retention.adopted(namespace)
        except InvalidInput as error:
            log.warning("%s: %s", path, error)


@contextmanager
def paused_collector() -> Iterator[None]:
    """While very many objects are made that all stay: the collector would walk them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
