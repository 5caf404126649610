"""The index of a device in LMDB: which slot holds which block, and each slot's generation.

Tables: slabs (file → label), slots (file, slot → entry, or generation of an empty slot), meta (clock, device). It is
read as a whole when the device is opened, and only written from then on. Every record carries a checksum of itself and
its key, for LMDB has none: a record that fails it is no record. `folder` decides whether the file as a whole can be
trusted.

A commit with `sync` is on stable storage when it returns. Without, it outlives the process but not the machine: the
folder remembers that, and a file whose machine went down is discarded.
"""

import errno
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import numpy.typing as npt

from kvstore.errors import DeviceFailed, DeviceFull
from kvstore.node.storage.batch import Batch, SlabRecord
from kvstore.node.storage.clock import Anchor
from kvstore.node.storage.entry import Entry
from kvstore.node.storage.folder import IndexFolder
from kvstore.node.storage.records import pack_entry, seal, unpack_entries, unsealed

__all__ = ["Batch", "DamagedIndex", "IndexedSlab", "Loaded", "StorageIndex"]

_MAP_BYTES = 64 * 1024**3  # virtual: the file grows as it is used
_EMPTY_SLOT = 0xFF  # in the place of an entry's shape
_GENERATION = struct.Struct("<BQ")
_LABEL = struct.Struct("<QQ")
_CLOCK = struct.Struct("<QqQ")
_CLOCK_KEY, _DEVICE_KEY = b"clock", b"device"
_META_PLACE = 0
_SLOT_KEY_BYTES = 8
_CHUNK_ROWS = 16384

Generations = npt.NDArray[np.uint64]


class DamagedIndex(Exception):
    """The index cannot be read, or not be trusted; it is made anew from the slots' headers."""


@dataclass(eq=False, slots=True)
class IndexedSlab:
    """What the index has of a slab file. generations: of each slot. entries: (slot, entry), ascending.

    damaged: slots whose record was; their generations are not known."""

    record: SlabRecord
    generations: Generations
    entries: list[tuple[int, Entry]]
    damaged: list[int]


@dataclass(frozen=True, slots=True)
class Loaded:
    """All of an index. anchor: the clock at its last commit; None where there was none."""

    slabs: dict[int, IndexedSlab]
    anchor: Anchor | None


class StorageIndex:
    """Blocks; one call at a time. Raises DeviceFailed and DeviceFull for what the disk does not do."""

    def __init__(self, directory: Path, device_id: bytes) -> None:
        """Opens what is there; where nothing is, or nothing that can be trusted, `fresh` is true and the index empty.
        Whoever finds it damaged later says so by `begin_anew`."""
        self._folder = IndexFolder(directory)
        self._device_id = device_id
        self._synced = True
        self._usable = False
        self._env: Any = None
        self.fresh = not self._folder.trusted
        if self.fresh:
            self._folder.discard()
        with _disk_errors(directory):
            self._folder.loading()
        try:
            self._open()
        except DamagedIndex:
            self.begin_anew()

    def begin_anew(self) -> None:
        """Forgets everything."""
        if self._env is not None:
            self._env.close()
        self._folder.discard()
        self.fresh = True
        self._open()

    def _open(self) -> None:
        with self._damage():
            # Nobody else opens it: the device is locked. Without `writemap` a full disk is an error, not a SIGBUS.
            self._env = lmdb.open(
                str(self._folder.path),
                map_size=_MAP_BYTES,
                max_dbs=3,
                lock=False,
                sync=self._synced,
                metasync=self._synced,
            )
            self._slabs, self._slots, self._meta = map(self._env.open_db, (b"slabs", b"slots", b"meta"))
            self._check_device()

    def _check_device(self) -> None:
        expected = seal(self._device_id, _META_PLACE)
        with self._env.begin(write=True) as txn:
            found = txn.get(_DEVICE_KEY, db=self._meta)
            if found not in (None, expected):
                raise DamagedIndex("it is another device's")
            if found is None:
                txn.put(_DEVICE_KEY, expected, db=self._meta)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def load(self) -> Loaded:
        """Everything that it has. Raises DamagedIndex."""
        with self._damage(), self._env.begin() as txn:
            slabs = dict(self._read_slabs(txn))
            for file, rows in _by_file(txn.cursor(self._slots)):
                if file in slabs:
                    _fill(slabs[file], file, rows)
            loaded = Loaded(slabs, _unpack_anchor(txn.get(_CLOCK_KEY, b"", db=self._meta)))
        self._mark_usable()
        return loaded

    def _read_slabs(self, txn: Any) -> Iterator[tuple[int, IndexedSlab]]:
        for key, raw in txn.cursor(self._slabs):
            file = int.from_bytes(key, "big")
            record = _unpack_label(raw, file)
            if record is not None:
                yield file, IndexedSlab(record, np.zeros(record.slots, np.uint64), [], [])

    # ---- writing -----------------------------------------------------------------------------------------------------

    def apply(self, batch: Batch, anchor: Anchor, *, sync: bool) -> None:
        """One transaction. Where it fails because the file is damaged, the index is made anew at the next opening."""
        try:
            self._set_sync(sync)
            with self._damage(), self._env.begin(write=True) as txn:
                self._write(txn, batch, anchor)
        except DamagedIndex as error:
            self._usable = False
            self._folder.distrust()
            raise DeviceFailed(f"{self._folder.path}: {error}") from error

    def _write(self, txn: Any, batch: Batch, anchor: Anchor) -> None:
        for file, record in batch.slabs.items():
            self._forget(txn, file)
            if record is None:
                txn.delete(_file_key(file), db=self._slabs)
            else:
                txn.put(_file_key(file), _pack_label(record, file), db=self._slabs)
        values = {_slot_key(*place): _slot_value(value, *place) for place, value in batch.slots.items()}
        values |= self._touched(txn, batch.deadlines)
        txn.cursor(self._slots).putmulti(sorted(values.items()))
        txn.put(_CLOCK_KEY, _pack_anchor(anchor), db=self._meta)

    def _forget(self, txn: Any, file: int) -> None:
        cursor = txn.cursor(self._slots)
        found = cursor.set_range(_slot_key(file, 0))
        while found and _file_of((cursor.key(), b"")) == file:
            found = cursor.delete()

    def _touched(self, txn: Any, deadlines: Mapping[tuple[int, int], int]) -> Iterator[tuple[bytes, bytes]]:
        for place, deadline_ms in deadlines.items():
            raw = txn.get(_slot_key(*place), db=self._slots)
            (body,) = unsealed([raw], [_place(*place)]) if raw is not None else (None,)
            if body is not None and body[0] != _EMPTY_SLOT:
                (entry,) = unpack_entries([body])
                yield _slot_key(*place), _slot_value(entry._replace(deadline_ms=deadline_ms), *place)

    def _set_sync(self, sync: bool) -> None:
        """LMDB takes it per environment, so a change opens it again."""
        if sync == self._synced:
            return
        with _disk_errors(self._folder.path):
            if sync:
                self._env.sync(True)
            self._env.close()
            self._folder.opened(sync)
            self._synced = sync
        self._open()

    def restore(self, batch: Batch, anchor: Anchor) -> None:
        """Fills a fresh index; only then it can be trusted."""
        self.apply(batch, anchor, sync=self._synced)
        self._mark_usable()
        self.fresh = False

    def _mark_usable(self) -> None:
        with _disk_errors(self._folder.path):
            self._folder.opened(self._synced)
        self._usable = True

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """LMDB's errors: what the disk did not do, and what can only come from a damaged file."""
        try:
            with _disk_errors(self._folder.path):
                yield
        except lmdb.Error as error:
            raise DamagedIndex(f"damaged: {error}") from error

    def close(self) -> None:
        """Leaves a file that can be told from one that has changed since; one that was not read to the end stays as it
        is."""
        with _disk_errors(self._folder.path):
            self._env.sync(True)
            self._env.close()
            if self._usable:
                self._folder.closed()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (lmdb.MapFullError, lmdb.TxnFullError) as error:
        raise DeviceFull(f"{path}: {error}") from error
    except lmdb.DiskError as error:
        raise _translated(path, error) from error
    except OSError as error:
        raise _translated(path, error, error.errno or 0) from error


def _translated(path: Path, error: Exception, error_number: int = 0) -> DeviceFailed:
    full = error_number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    return (DeviceFull if full else DeviceFailed)(f"{path}: {error}", error_number)


# ---- records ---------------------------------------------------------------------------------------------------------


def _by_file(cursor: Any) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
    """The records of slots, in runs of one file: (slot, record)."""
    rows = cursor.iternext()
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        whole = [row for row in chunk if len(row[0]) == _SLOT_KEY_BYTES]
        places = np.frombuffer(b"".join([key for key, _ in whole]), ">u4").reshape(-1, 2)
        files, slots = places[:, 0], places[:, 1].tolist()
        starts = [0, *(np.flatnonzero(np.diff(files)) + 1).tolist(), len(whole)]
        for start, end in pairwise(starts):
            if start < end:
                yield int(files[start]), [(slots[at], whole[at][1]) for at in range(start, end)]


def _fill(slab: IndexedSlab, file: int, rows: list[tuple[int, bytes]]) -> None:
    """Unpacks records of one slab's slots."""
    first = _place(file, 0)
    bodies = unsealed([raw for _, raw in rows], [first | slot for slot, _ in rows])
    known = [(slot, body) for (slot, _), body in zip(rows, bodies, strict=True) if slot < slab.record.slots]
    slab.damaged += [slot for slot, body in known if body is None]
    for slot, body in known:
        if body is not None and body[0] == _EMPTY_SLOT:
            slab.generations[slot] = _GENERATION.unpack(body)[1]
    live = [(slot, body) for slot, body in known if body is not None and body[0] != _EMPTY_SLOT]
    entries = list(unpack_entries([body for _, body in live]))
    slots = [slot for slot, _ in live]
    slab.entries += zip(slots, entries, strict=True)
    slab.generations[slots] = [entry.generation for entry in entries]


def _slot_value(value: Entry | int, file: int, slot: int) -> bytes:
    body = _GENERATION.pack(_EMPTY_SLOT, value) if isinstance(value, int) else pack_entry(value)
    return seal(body, _place(file, slot))


def _place(file: int, slot: int) -> int:
    return file << 32 | slot


def _file_key(file: int) -> bytes:
    return file.to_bytes(4, "big")


def _slot_key(file: int, slot: int) -> bytes:
    return _place(file, slot).to_bytes(8, "big")


def _file_of(row: tuple[bytes, bytes]) -> int:
    return int.from_bytes(row[0][:4], "big")


def _pack_label(record: SlabRecord, file: int) -> bytes:
    return seal(_LABEL.pack(record.slot_bytes, record.slots) + record.tenant.encode(), file)


def _unpack_label(raw: bytes, file: int) -> SlabRecord | None:
    (body,) = unsealed([raw], [file])
    if body is None:
        return None
    slot_bytes, slots = _LABEL.unpack_from(body)
    return SlabRecord(slot_bytes, body[_LABEL.size :].decode(), slots)


def _pack_anchor(anchor: Anchor) -> bytes:
    body = _CLOCK.pack(anchor.store_ms, anchor.wall_ms, anchor.boot_ms) + anchor.boot_id.encode()
    return seal(body, _META_PLACE)


def _unpack_anchor(raw: bytes) -> Anchor | None:
    (body,) = unsealed([raw], [_META_PLACE])
    if body is None:
        return None
    store_ms, wall_ms, boot_ms = _CLOCK.unpack_from(body)
    return Anchor(store_ms, wall_ms, boot_ms, body[_CLOCK.size :].decode())
