"""The index in LMDB: one file, memory-mapped, read without a copy of it in this process.

Tables: blocks (key → packed locations, one after the other), nodes (ref → record), meta (the last ref given, and
documents).

- A look-up is one read transaction on the caller's thread: it never waits for a writer (LMDB keeps versions), and a
  thread of its own would give the interpreter lock back and forth at every key. The file should fit in memory.
- Writes run on one thread of their own, in the order of the calls, so that a large batch stops no heartbeat.
- Nothing waits for the disk (`sync` and `metasync` off): the index is a hint that the nodes can refill, and `folder`
  discards a file that a dead machine may have left torn. `writemap` stays off though it doubles the speed of writing:
  with it a full disk is a SIGBUS, without it an error.
- Removing copies the pages that it changes, and those of the last two batches are not free yet. Additions therefore
  leave that much room: 256 MiB (three batches of 16,384 keys, each on a page of its own), or 2/3 of a small file.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from typing import Any, TypeVar

import lmdb
import numpy as np

from kvstore.blocks.keys import unpack_keys
from kvstore.control.index.base import (
    LOCATION_BYTES,
    Applied,
    Batch,
    Locations,
    NodeRecord,
    Swept,
    assemble,
    bucket_start,
)
from kvstore.control.index.folder import IndexFolder
from kvstore.control.index.records import IDENTITY_BYTES, Edits, Tally, add_changes, edit_value, pack_node, unpack_node
from kvstore.errors import Closed, ConfigError, Refused

INDEX_BYTES_MIN = 16 * 1024 * 1024
_REMOVAL_BYTES = 256 * 1024 * 1024
_LOOKUP_KEYS = 512  # per step, after which a search for a prefix may end
_LAST_REF = b"last_ref"

T = TypeVar("T")


class LmdbIndex:
    """Implements `base.Index`. All methods belong to one event loop.

    path: directory, made when missing; empty for a temporary one. bytes_max: bound of the file.
    Raises ConfigError when the directory cannot be used.
    """

    def __init__(self, path: str, bytes_max: int) -> None:
        if bytes_max < INDEX_BYTES_MIN:
            raise ConfigError(f"control.index_bytes_max: {bytes_max} is less than {INDEX_BYTES_MIN}")
        self._bytes_max = bytes_max
        self._folder = IndexFolder(path)
        try:
            self._env = self._open()
        except BaseException:
            self._folder.close(clean=False)
            raise
        self._blocks = self._env.open_db(b"blocks")
        self._nodes = self._env.open_db(b"nodes")
        self._meta = self._env.open_db(b"meta")
        self._folder.opened()
        self._writer = ThreadPoolExecutor(1, "kvstore-index")
        self._closed = False

    def _open(self) -> Any:
        def attempt() -> Any:
            return lmdb.open(str(self._folder.path), map_size=self._bytes_max, max_dbs=3, sync=False, metasync=False)

        try:
            return attempt()
        except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError) as error:
            self._folder.discard(str(error))
            return attempt()
        except lmdb.Error as error:
            raise ConfigError(f"control.index_path {self._folder.path}: {error}") from error

    # ---- reading -----------------------------------------------------------------------------------------------------

    async def nodes(self) -> list[NodeRecord]:
        self._check_open()
        with self._env.begin(self._nodes) as txn:
            return [unpack_node(int.from_bytes(key, "big"), raw) for key, raw in txn.cursor()]

    async def node(self, ref: int) -> NodeRecord | None:
        self._check_open()
        with self._env.begin(self._nodes) as txn:
            return _read_node(txn, self._nodes, ref)

    async def blocks(self) -> int:
        self._check_open()
        with self._env.begin() as txn:
            return int(txn.stat(self._blocks)["entries"])

    async def document(self, name: str) -> bytes:
        self._check_open()
        with self._env.begin(self._meta) as txn:
            return bytes(txn.get(_document_key(name), b""))

    async def lookup(self, keys: bytes, *, prefix: bool) -> Locations:
        self._check_open()
        wanted = unpack_keys(keys)
        values: list[bytes] = []
        with self._env.begin(self._blocks) as txn:
            for start in range(0, len(wanted), _LOOKUP_KEYS):
                # Faster than getmulti, which moves a cursor and makes a pair of each key and value.
                part = list(map(txn.get, wanted[start : start + _LOOKUP_KEYS], repeat(b"")))
                values += part
                if prefix and b"" in part:
                    break
        return assemble(values)

    # ---- writing -----------------------------------------------------------------------------------------------------

    async def admit(self, node_id: str, incarnation: int) -> NodeRecord:
        def write(txn: Any) -> NodeRecord:
            for key, raw in txn.cursor(self._nodes):
                record = unpack_node(int.from_bytes(key, "big"), raw)
                if (record.node_id, record.incarnation) == (node_id, incarnation):
                    return record
            ref = int.from_bytes(txn.get(_LAST_REF, b"", db=self._meta), "big") + 1
            txn.put(_LAST_REF, _ref_key(ref), db=self._meta)
            record = NodeRecord(ref, node_id, incarnation)
            txn.put(_ref_key(ref), pack_node(record), db=self._nodes)
            return record

        return await self._write(write)

    async def replace_document(self, name: str, old: bytes, new: bytes) -> bool:
        def write(txn: Any) -> bool:
            if txn.get(_document_key(name), b"", db=self._meta) != old:
                return False
            return bool(txn.put(_document_key(name), new, db=self._meta))

        return await self._write(write)

    async def forget(self, refs: Collection[int]) -> None:
        def write(txn: Any) -> None:
            for ref in refs:
                txn.delete(_ref_key(ref), db=self._nodes)

        await self._write(write)

    async def apply(self, ref: int, batch: Batch) -> Applied:
        def write(txn: Any) -> Applied:
            record = _read_node(txn, self._nodes, ref)
            if record is None:
                return Applied(False, 0)
            if batch.sequence <= record.sequence:
                return Applied(True, record.sequence)
            edits: Edits = {}
            for bucket in batch.replace_buckets:
                self._empty_bucket(txn, bucket, ref, edits)
            add_changes(edits, ref, batch)
            grew = self._edit(txn, edits, {ref: Tally.of(record)}, batch.sequence)
            if grew:
                self._check_room(txn)
            return Applied(True, batch.sequence)

        return await self._write(write)

    async def sweep(self, position: bytes, blocks_max: int, live: Collection[int], now_ms: int) -> Swept:
        def work() -> Swept:
            # Looked through in a read transaction: mostly there is nothing to remove, and then nothing is written.
            # Nobody else writes in between, for this is the writer's thread.
            with self._env.begin(self._blocks) as txn:
                cursor = txn.cursor()
                rows = list(islice(cursor.iternext(), blocks_max + 1)) if cursor.set_range(position) else []
            onward = rows.pop()[0] if len(rows) > blocks_max else b""
            edits, removed = _dead_locations(rows, live, now_ms)
            if edits:
                self._transact(lambda txn: self._edit(txn, edits, {}, None))
            return Swept(onward, len(rows), removed)

        return await self._on_writer(work)

    def _empty_bucket(self, txn: Any, bucket: int, ref: int, edits: Edits) -> None:
        """Adds the removal of all that a node has in a bucket to `edits`."""
        owner = ref.to_bytes(4, "little")
        cursor = txn.cursor(self._blocks)
        if not cursor.set_range(bucket_start(bucket)):
            return
        for key, value in cursor.iternext():
            if key[0] != bucket:
                return
            for start in range(0, len(value), LOCATION_BYTES):
                if value[start : start + len(owner)] == owner:
                    edits.setdefault(key, {})[value[start : start + IDENTITY_BYTES]] = None

    def _edit(self, txn: Any, edits: Edits, tallies: dict[int, Tally | None], sequence: int | None) -> bool:
        """Writes edited values and the records of the nodes that they concern. True when locations were added."""
        keys = sorted(edits)
        cursor = txn.cursor(self._blocks)
        old = dict(cursor.getmulti(keys))
        puts: list[tuple[bytes, bytes]] = []
        grew = False
        for key in keys:
            before = old.get(key, b"")
            value, moved = edit_value(before, edits[key])
            for identity in moved:
                came = edits[key][identity] is not None
                grew = grew or came
                self._tally(txn, identity, tallies, key, came)
            if value:
                puts.append((key, value))
            elif before:
                txn.delete(key, db=self._blocks)
        cursor.putmulti(puts)
        for ref, tally in tallies.items():
            if tally is not None:
                txn.put(_ref_key(ref), pack_node(tally.settled(sequence)), db=self._nodes)
        return grew

    def _tally(self, txn: Any, identity: bytes, tallies: dict[int, Tally | None], key: bytes, came: bool) -> None:
        ref = int.from_bytes(identity[:4], "little")
        if ref not in tallies:
            record = _read_node(txn, self._nodes, ref)
            tallies[ref] = Tally.of(record) if record is not None else None
        tally = tallies[ref]
        if tally is not None:
            tally.move(key, identity, came)

    def _check_room(self, txn: Any) -> None:
        stat = txn.stat(self._blocks)
        pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        if pages * stat["psize"] > max(self._bytes_max // 3, self._bytes_max - _REMOVAL_BYTES):
            raise self._full()

    def _full(self) -> Refused:
        return Refused(f"the index is full: control.index_bytes_max is {self._bytes_max}", retry_after_s=1.0)

    # ---- the writer's thread -----------------------------------------------------------------------------------------

    def _transact(self, write: Callable[[Any], T]) -> T:
        try:
            with self._env.begin(write=True) as txn:
                return write(txn)
        except (lmdb.MapFullError, lmdb.TxnFullError) as error:
            raise self._full() from error
        except lmdb.DiskError as error:
            raise Refused(f"the index cannot be written: {error}", retry_after_s=1.0) from error

    async def _write(self, write: Callable[[Any], T]) -> T:
        return await self._on_writer(lambda: self._transact(write))

    async def _on_writer(self, work: Callable[[], T]) -> T:
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the index is closed")

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._finish)

    def _finish(self) -> None:
        self._writer.shutdown(wait=True)
        if not self._folder.temporary:
            self._env.sync(True)
        self._env.close()
        self._folder.close(clean=True)


def _document_key(name: str) -> bytes:
    return b"document:" + name.encode()


def _ref_key(ref: int) -> bytes:
    return ref.to_bytes(4, "big")


def _read_node(txn: Any, table: Any, ref: int) -> NodeRecord | None:
    raw = txn.get(_ref_key(ref), db=table)
    return unpack_node(ref, raw) if raw is not None else None


def _dead_locations(rows: Sequence[tuple[bytes, bytes]], live: Collection[int], now_ms: int) -> tuple[Edits, int]:
    """Edits that remove the locations of nodes that are not live, and those past their deadline."""
    locations = assemble([value for _, value in rows])
    alive = np.isin(locations.entries["node"], np.fromiter(live, np.uint32, len(live)))
    dead = locations.where(~alive | (locations.deadline_ms <= np.uint64(now_ms)))
    edits: Edits = {}
    for block, entry in zip(dead.block.tolist(), dead.entries, strict=True):
        edits.setdefault(rows[block][0], {})[entry.tobytes()[:IDENTITY_BYTES]] = None
    return edits, len(dead)
