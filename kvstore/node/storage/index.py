"""The index of a device in LMDB: which slot holds which block, and each slot's generation.

Tables: slabs (file → label), slots (file, slot → entry, or generation of an empty slot), meta (clock, device). It is
read as a whole when the device is opened, and only written from then on. Every record carries a checksum of itself and
its key, for LMDB has none: a record that fails it is no record. `folder` decides whether the file as a whole can be
trusted.

A commit with `sync` is on stable storage when it returns. Without, it outlives the process but not the machine: the
folder remembers that, and a file whose machine went down is discarded.
"""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from kvstore.errors import DeviceFailed, DeviceFull
from kvstore.node.storage.batch import Batch
from kvstore.node.storage.clock import Anchor
from kvstore.node.storage.folder import IndexFolder
from kvstore.node.storage.index_records import (
    META_PLACE,
    IndexedSlab,
    file_key,
    pack_anchor,
    pack_label,
    runs_of_files,
    slot_key,
    slot_value,
    touched,
    unpack_anchor,
    unpack_label,
)
from kvstore.node.storage.records import seal

__all__ = ["Batch", "DamagedIndex", "IndexedSlab", "Loaded", "StorageIndex"]

_MAP_BYTES = 64 * 1024**3  # virtual: the file grows as it is used
_CLOCK_KEY, _DEVICE_KEY = b"clock", b"device"


class DamagedIndex(Exception):
    """The index cannot be read, or not be trusted; it is made anew from the slots' headers."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """All of an index. anchor: the clock at its last commit."""

    slabs: dict[int, IndexedSlab]
    anchor: Anchor


class StorageIndex:
    """Blocks; one call at a time. Raises DeviceFailed and DeviceFull for what the disk does not do."""

    def __init__(self, directory: Path, device_id: bytes) -> None:
        """Opens what is there; where nothing is, or nothing that can be trusted, `fresh` is true and the index empty.
        Whoever finds it damaged later says so by `begin_anew`."""
        self._device_id = device_id
        self._synced = True
        self._usable = False
        self._env: Any = None
        with _disk_errors(directory):
            self._folder = IndexFolder(directory)
            self.fresh = not self._folder.trusted
            if self.fresh:
                self._folder.discard()
            self._folder.loading()
        try:
            self._open()
        except DamagedIndex:
            self.begin_anew()

    def begin_anew(self) -> None:
        """Forgets everything."""
        if self._env is not None:
            self._env.close()
        with _disk_errors(self._folder.path):
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
        expected = seal(self._device_id, META_PLACE)
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
            for file, slots, sealed in runs_of_files(txn.cursor(self._slots).iternext()):
                if file in slabs:
                    slabs[file].add(file, slots, sealed)
            anchor = unpack_anchor(txn.get(_CLOCK_KEY, b"", db=self._meta))
            if anchor is None:  # a deadline in no known time may be any
                raise DamagedIndex("it does not say when it was written")
        self._mark_usable()
        return Loaded(slabs, anchor)

    def _read_slabs(self, txn: Any) -> Iterator[tuple[int, IndexedSlab]]:
        for key, raw in txn.cursor(self._slabs):
            file = int.from_bytes(key, "big")
            record = unpack_label(raw, file)
            if record is not None:
                yield file, IndexedSlab.without_slots(record)

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
                txn.delete(file_key(file), db=self._slabs)
            else:
                txn.put(file_key(file), pack_label(record, file), db=self._slabs)
        values = {slot_key(*place): slot_value(value, *place) for place, value in batch.slots.items()}
        values |= self._touched(txn, batch.deadlines)
        txn.cursor(self._slots).putmulti(sorted(values.items()))
        txn.put(_CLOCK_KEY, pack_anchor(anchor), db=self._meta)

    def _forget(self, txn: Any, file: int) -> None:
        cursor = txn.cursor(self._slots)
        found = cursor.set_range(slot_key(file, 0))
        while found and cursor.key().startswith(file_key(file)):
            found = cursor.delete()

    def _touched(self, txn: Any, deadlines: Mapping[tuple[int, int], int]) -> Iterator[tuple[bytes, bytes]]:
        for place, deadline_ms in deadlines.items():
            value = touched(txn.get(slot_key(*place), db=self._slots), *place, deadline_ms)
            if value is not None:
                yield slot_key(*place), value

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
            try:
                self._env.sync(True)
            finally:
                self._env.close()
            if self._usable:
                self._folder.closed()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (lmdb.MapFullError, lmdb.TxnFullError) as error:
        raise DeviceFull(f"{path}: {error}") from error
    except lmdb.Error as error:
        number = _error_number(error)
        if not number:
            raise
        raise _translated(path, error, number) from error
    except OSError as error:
        raise _translated(path, error, error.errno or 0) from error


def _translated(path: Path, error: Exception, error_number: int) -> DeviceFailed:
    full = error_number in (errno.ENOSPC, errno.EDQUOT)
    return (DeviceFull if full else DeviceFailed)(f"{path}: {error}", error_number)


def _error_number(error: lmdb.Error) -> int:
    """The system's, which py-lmdb tells as a text; 0 for an error of LMDB's own, which comes of a damaged file."""
    text = str(error).rpartition(": ")[2]
    return next((number for number in errno.errorcode if os.strerror(number) == text), 0)
