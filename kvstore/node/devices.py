"""The directories of the NVMe tier: opened before the node serves, and what they had taken into the catalog."""

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvstore.blocks.state import Tier
from kvstore.config import NodeConfig
from kvstore.errors import ChecksumMismatch, ConfigError, DeviceFailed, InvalidInput
from kvstore.node.adopt import Adoption, Found
from kvstore.node.catalog import Catalog
from kvstore.node.retention import Retention
from kvstore.node.storage.device import Device, DeviceLimits
from kvstore.node.storage.entry import PLAIN
from kvstore.node.storage.format import SLAB_HEADER_BYTES
from kvstore.node.storage.manifest import Manifest
from kvstore.node.storage.recover import RecoveredSlab
from kvstore.node.storage.served import ServedDevice
from kvstore.node.storage.shared import SharedDevice
from kvstore.node.tiers.bank import Bank
from kvstore.node.tiers.nvme import NvmeTier
from kvstore.policy.slots import BankedSpace, SizeClass, Slab, SlotSpace

STEP_BLOCKS = 1024
"""Adopted at once while a node serves."""
Clock = Callable[[], int]
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


async def adopt(catalog: Catalog, retention: Retention, nvme: NvmeTier, now_ns: int) -> None:
    """Brings what all devices had into the catalog, and the namespaces that it is of, before anybody is served. Nothing
    is read of the blocks."""
    began_ns = time.monotonic_ns()
    for bank in nvme.banks:
        with contextlib.suppress(DeviceFailed):
            await _open_namespaces(retention, bank)
    chosen = [bank for bank in nvme.banks if bank.in_service]
    with paused_collector():
        adoption = catalog.adopt(Tier.NVME, now_ns)
        for bank in chosen:
            for _ in _steps(adoption, nvme, bank, bank.device.take_recovered(), bank.device.clock.now_ms(), None):
                pass
        count = adoption.finish()
    log.info("%d blocks adopted in %d ms", count, (time.monotonic_ns() - began_ns) // 1_000_000)


async def adopt_serving(catalog: Catalog, retention: Retention, nvme: NvmeTier, bank: Bank, clock: Clock) -> None:
    """Brings what one device had into the catalog of a node that serves: a few blocks at a time, and others in between.

    The device gives no slots before it is known which of its slab files are in use. Raises DeviceFailed, and the device
    is out of service again."""
    began_ns = time.monotonic_ns()
    await _open_namespaces(retention, bank)
    now_ns, store_now_ms = clock(), bank.device.clock.now_ms()
    recovered = bank.device.take_recovered()
    shift_ms = (now_ns - store_now_ms * 1_000_000) // 1_000_000
    touched_ms = await asyncio.to_thread(_touch_times, recovered)
    with paused_collector():
        adoption = catalog.adopt(Tier.NVME, now_ns, touched_ms + shift_ms)
        for filled in _steps(adoption, nvme, bank, recovered, store_now_ms, STEP_BLOCKS):
            if filled:
                catalog.hold_bank(Tier.NVME, bank.number, held=not bank.in_service)
                adoption.settle()
            await asyncio.sleep(0)
        catalog.hold_bank(Tier.NVME, bank.number, held=not bank.in_service)
        while adoption.orphan(STEP_BLOCKS):  # noqa: ASYNC110 - it is work, not waiting
            await asyncio.sleep(0)
    log.info("%d blocks adopted in %d ms", adoption.blocks, (time.monotonic_ns() - began_ns) // 1_000_000)


def _touch_times(recovered: Sequence[RecoveredSlab]) -> npt.NDArray[np.int64]:
    """When blocks were touched last, each time once, on the device's clock. Blocks, so it is called from a thread."""
    times = [entry.deadline_ms - entry.ttl_ms for slab in recovered for _, entry in slab.entries]
    return np.unique(np.array(times, np.int64))


def _steps(
    adoption: Adoption,
    nvme: NvmeTier,
    bank: Bank,
    recovered: Sequence[RecoveredSlab],
    store_now_ms: int,
    blocks_max: int | None,
) -> Iterator[bool]:
    """Adopts slabs first, then what they hold; true for a step that filled some, up to `blocks_max`. A device that goes
    out of service meanwhile brings no more."""
    slabs = []
    for found in recovered:
        slab = adoption.open(bank.number, SizeClass(found.tenant, found.slot_bytes), found.generations.tolist())
        nvme.adopt_slab(slab.slab_id, bank.number, found.file, found.slot_bytes, found.tenant)
        slabs.append((slab, found))
        yield False
    for slab, found in slabs:
        entries, found.entries = found.entries, []  # let go of slab by slab: to free a million at once takes long
        step = blocks_max or max(1, len(entries))
        for start in range(0, len(entries), step):
            if bank.in_service:
                _fill(adoption, nvme, slab, entries[start : start + step], store_now_ms)
            yield True
        adoption.close(slab)


def _fill(adoption: Adoption, nvme: NvmeTier, slab: Slab, entries: Sequence[Found], store_now_ms: int) -> None:
    rejected = adoption.fill(slab, entries, store_now_ms)
    for slot, entry in entries:
        if entry.codec != PLAIN:
            nvme.adopt_stored(slab.slab_id, slot, entry)
    for slot, generation in rejected:
        nvme.forget(slab.slab_id, slot, generation)


async def _open_namespaces(retention: Retention, bank: Bank) -> None:
    """Nothing for one that is out of service. One that cannot be read goes out of service, and DeviceFailed is
    raised."""
    if not bank.in_service:
        return
    try:
        known = await Manifest(bank.path).load()
    except ChecksumMismatch as error:
        log.error("%s: its blocks are lost: %s", bank.path, error)
        return
    except DeviceFailed as error:
        bank.take_out(error)
        raise
    for namespace in known:
        try:
            retention.adopted(namespace)
        except InvalidInput as error:
            log.warning("%s: %s", bank.path, error)


@contextlib.contextmanager
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
