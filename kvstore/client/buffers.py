"""Buffers: where an engine keeps its KV, and how a block's bytes come out of it and go back.

    engine                                        slot (a block's bytes, host memory)
    ┌ pool K, layer 0 ┐  ids [7, 3]               ┌─────────┬─────────┬─────────┬──
    │ 0 1 2 3 4 5 6 7 │ ─────────── moves ──────► │ K 7 │ 3 │ V 7 │ 3 │ K 7 │ 3 │ …
    └─────────────────┘                           └─────────┴─────────┴─────────┴──
                                                    layer 0             layer 1

Each kind of buffer says which rows of which arrays lie where in the slot (its *moves*); one mover per kind of memory
carries them out. Nothing is converted, and the engine's arrays are never copied but into and out of the slot.

The engine's arrays must outlive the buffers' use: a source may be changed again once its `store`, `write_layers` or
`send` has returned, a target read once its layers were reported ready. Copies of host arrays release the interpreter's
lock. Copies of CUDA arrays wait for what the engine had queued on `engine_stream` when they were asked for, and have
arrived when the call returns.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kvstore.blocks.layout import Layout
from kvstore.client.arrays import HOST, Rows, rows_of
from kvstore.client.cuda import CudaCopy, Move
from kvstore.client.cuda import Piece as Moves
from kvstore.errors import BufferMismatch

Bytes = npt.NDArray[np.uint8]
_LIBRARY_MIN_BYTES = 1024 * 1024


class Piece(NamedTuple):
    """One block's range of layers.

    host: the slot's bytes of that range, layers × layer_bytes of them. pages: only that many pages of the block exist
    (the partial last block); None means all.
    """

    block: int
    first_layer: int
    layers: int
    host: Bytes
    pages: int | None = None


class KVBuffers(Protocol):
    """An engine's KV memory, block by block. Calls block for the copy and may come from any thread, for distinct
    blocks or layers at once.

    blocks: capacity in blocks, the partial one included. writable: False when only `gather` is possible. device: "cpu",
    or the device as CUDA numbers it ("cuda:0").
    All methods raise BufferMismatch for a block or page that is not there.
    """

    @property
    def blocks(self) -> int: ...
    @property
    def writable(self) -> bool: ...
    @property
    def device(self) -> str: ...

    def gather(self, block: int, first_layer: int, layers: int, out: Bytes, pages: int | None = None) -> None:
        """Engine → slot bytes. Pages that do not exist become zeros."""

    def scatter(self, block: int, first_layer: int, layers: int, source: Bytes, pages: int | None = None) -> None:
        """Slot bytes → engine. Pages that do not exist are left alone. Raises BufferMismatch when not `writable`."""

    def gather_many(self, pieces: Sequence[Piece]) -> None:
        """`gather` for several pieces; on a GPU with one launch for all of them."""

    def scatter_many(self, pieces: Sequence[Piece]) -> None:
        """`scatter` for several pieces; on a GPU with one launch for all of them."""


def contiguous(source: Any, layout: Layout, *, engine_stream: int = 0) -> KVBuffers:
    """Buffers over blocks that lie one after the other.

    source: one array [blocks, layers, …] or [blocks, …] whose entries hold `layout.block_bytes` each, or one flat array
        of any whole number of blocks; or a list or tuple with one array [blocks, …] per layer, whose entries hold
        `layout.layer_bytes` each. Elements may be of any type of the layout's size, or single bytes.
    engine_stream: address of the CUDA stream on which the engine writes (device arrays only).
    Raises BufferMismatch.
    """
    if isinstance(source, list | tuple):
        _expect_count("arrays, one per layer", len(source), layout.layers)
        per_layer = [rows_of(f"layer {i}", array, layout.group.dtype) for i, array in enumerate(source)]
        for i, rows in enumerate(per_layer):
            _expect_row(f"layer {i}", rows, layout.layer_bytes, "layer of a block")
            if rows.count != per_layer[0].count:
                raise BufferMismatch(f"layer {i}: {rows}; layer 0 has {per_layer[0].count} blocks")
        return _LayeredBlocks(layout, per_layer, engine_stream)
    rows = rows_of("array", source, layout.group.dtype)
    if rows.nbytes < layout.block_bytes:
        raise BufferMismatch(f"array: {rows}; one block of {layout!r} has {layout.block_bytes} bytes")
    if len(rows.shape) == 1:
        blocks, rest = divmod(rows.nbytes, layout.block_bytes)
        if rest:
            raise BufferMismatch(f"array: {rows}; no whole number of blocks of {layout.block_bytes} bytes")
        rows = Rows(rows.array.reshape(blocks, -1), rows.shape, rows.dtype, rows.device, rows.writable)
    _expect_row("array", rows, layout.block_bytes, "block")
    if len(rows.shape) > 2 and rows.shape[1] != layout.layers:
        raise BufferMismatch(f"array: {rows}; the second axis must be the layout's {layout.layers} layers")
    return _WholeBlocks(layout, rows, engine_stream)


def paged(
    layers: Sequence[Sequence[Any]], block_table: Sequence[int], layout: Layout, *, engine_stream: int = 0
) -> KVBuffers:
    """Buffers over page pools and a request's block table, as vLLM and SGLang keep them.

    layers: layers[l] holds the pools of layer l in the layout's order: (K, V), or one of packed or latent pages. A pool
        is an array [pages, …] with `layout.group.page_bytes` bytes per page; pages may lie apart. One tensor
        [2, pages, …] per layer is passed as it is (its first axis is the sequence of pools); of one
        [pages, 2, …] per layer pass (layer[:, 0], layer[:, 1]), or name both the page in a packed layout.
    block_table: ids of the request's pages in the order of its tokens. The last block may have fewer pages than others.
    engine_stream: address of the CUDA stream on which the engine writes (device arrays only).
    Raises BufferMismatch.
    """
    _expect_count("sequences of pools, one per layer", len(layers), layout.layers)
    pools = []
    for layer, tensors in enumerate(layers):
        _expect_count(f"pools of layer {layer}", len(tensors), layout.group.tensors)
        for tensor in range(layout.group.tensors):
            name = f"layer {layer}, pool {tensor}"
            rows = rows_of(name, tensors[tensor], layout.group.dtype)
            _expect_row(name, rows, layout.group.page_bytes, "page")
            pools.append(rows)
    return _PagedBlocks(layout, pools, _page_ids(block_table, min(rows.count for rows in pools)), engine_stream)


def _expect_count(what: str, given: int, expected: int) -> None:
    if given != expected:
        raise BufferMismatch(f"{given} {what}; the layout has {expected}")


def _expect_row(name: str, rows: Rows, expected: int, what: str) -> None:
    if rows.row_bytes != expected:
        raise BufferMismatch(f"{name}: {rows}, {rows.row_bytes} per {what}; the layout has {expected}")


def _page_ids(block_table: Sequence[int], pages: int) -> npt.NDArray[np.intp]:
    ids = np.asarray(block_table)
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise BufferMismatch(f"block_table: a non-empty list of page ids is needed, not {ids.dtype}{list(ids.shape)}")
    if int(ids.min()) < 0 or int(ids.max()) >= pages:
        raise BufferMismatch(f"block_table: ids {int(ids.min())} … {int(ids.max())}; the pools have {pages} pages")
    if np.unique(ids).size != ids.size:
        raise BufferMismatch(f"block_table: a page id stands twice among its {ids.size}")
    return ids.astype(np.intp)


class _HostCopy:
    """Moves rows between NumPy arrays."""

    def gather(self, pieces: Sequence[Moves]) -> None:
        for host, moves in pieces:
            for rows, ids, offset in moves:
                if ids is None:
                    np.copyto(host[offset : offset + rows.size].reshape(rows.shape), rows)
                elif rows.flags.c_contiguous:
                    target = host[offset : offset + ids.size * rows.shape[1]].reshape(ids.size, -1)
                    # The ids were checked; any mode but "raise" spares take() a copy of its own.
                    np.take(rows, ids, axis=0, out=target, mode="clip")
                else:
                    # take() would first make the whole pool contiguous.
                    host[offset : offset + ids.size * rows.shape[1]].reshape(ids.size, -1)[:] = rows[ids]

    def scatter(self, pieces: Sequence[Moves]) -> None:
        for host, moves in pieces:
            for rows, ids, offset in moves:
                if ids is None:
                    _copy_out(rows, host[offset : offset + rows.size].reshape(rows.shape))
                else:
                    rows[ids] = host[offset : offset + ids.size * rows.shape[1]].reshape(ids.size, -1)


def _copy_out(rows: Bytes, source: Bytes) -> None:
    """Slot → engine, by a loop of NumPy's own where that can be: see `docs/decisions.md`."""
    if rows.nbytes < _LIBRARY_MIN_BYTES and _in_words(rows) and _in_words(source):
        np.positive(source.view(np.uint64), out=rows.view(np.uint64))
    else:
        np.copyto(rows, source)


def _in_words(rows: Bytes) -> bool:
    return not (rows.ctypes.data | rows.shape[-1] | rows.strides[0]) % 8 and rows.strides[-1] == 1


class _Blocks(ABC):
    """What the kinds of buffers share: checks, and handing their moves to the mover of their memory.

    `gather` and `scatter` run once per piece, which may take tens of µs: what they need is worked out before.
    """

    def __init__(self, layout: Layout, arrays: Sequence[Rows], blocks: int, engine_stream: int) -> None:
        devices = {rows.device for rows in arrays}
        if len(devices) > 1:
            raise BufferMismatch(f"arrays on several devices: {', '.join(sorted(devices))}")
        self.layout = layout
        self.blocks = blocks
        self.device = devices.pop()
        self.writable = all(rows.writable for rows in arrays)
        self._arrays = [rows.array for rows in arrays]
        self._copy = _HostCopy() if self.device == HOST else CudaCopy(self.device, engine_stream)
        self._layer_bytes, self._tensor_bytes = layout.layer_bytes, layout.tensor_bytes
        self._pages, self._page_bytes = layout.pages_per_block, layout.group.page_bytes

    def gather(self, block: int, first_layer: int, layers: int, out: Bytes, pages: int | None = None) -> None:
        self._copy.gather((self._from_engine(block, first_layer, layers, out, pages),))

    def scatter(self, block: int, first_layer: int, layers: int, source: Bytes, pages: int | None = None) -> None:
        self._expect_writable()
        self._copy.scatter((self._plan(block, first_layer, layers, source, pages),))

    def gather_many(self, pieces: Sequence[Piece]) -> None:
        self._copy.gather([self._from_engine(*piece) for piece in pieces])

    def scatter_many(self, pieces: Sequence[Piece]) -> None:
        self._expect_writable()
        self._copy.scatter([self._plan(*piece) for piece in pieces])

    def _expect_writable(self) -> None:
        if not self.writable:
            raise BufferMismatch(f"{self!r} is read-only, nothing can be loaded into it")

    def _from_engine(self, block: int, first_layer: int, layers: int, out: Bytes, pages: int | None) -> Moves:
        planned = self._plan(block, first_layer, layers, out, pages)
        if pages is not None and pages < self._pages:
            out[:] = 0
        return planned

    def _plan(self, block: int, first_layer: int, layers: int, host: Bytes, pages: int | None) -> Moves:
        if not 0 <= block < self.blocks:
            raise BufferMismatch(f"block {block} of {self!r} does not exist")
        assert 0 <= first_layer < first_layer + layers <= self.layout.layers, (first_layer, layers)
        assert host.nbytes == layers * self._layer_bytes, (host.shape, layers)
        assert pages is None or 0 < pages <= self._pages, pages
        pages = self._pages if pages is None else pages
        return host, self._moves(block, range(first_layer, first_layer + layers), pages)

    @abstractmethod
    def _moves(self, block: int, layers: range, pages: int) -> Sequence[Move]:
        """Which rows of which arrays lie where in the slot's bytes of these layers."""

    def _tensors(self, layer_block: Any, offset: int, pages: int) -> list[Move]:
        """The moves of the first `pages` pages of each tensor of a layer block, uint8 [1, layer bytes]."""
        taken = pages * self._page_bytes
        starts = range(0, self._layer_bytes, self._tensor_bytes)
        return [(layer_block[:, start : start + taken], None, offset + start) for start in starts]

    def __repr__(self) -> str:
        kind = type(self).__name__.removeprefix("_")
        return (
            f"{kind}({self.blocks} blocks of {self.layout.block_bytes} B, {self.layout.layers} layers, {self.device})"
        )


class _WholeBlocks(_Blocks):
    """One array, block after block: a range of layers is one stretch of bytes."""

    def __init__(self, layout: Layout, rows: Rows, engine_stream: int) -> None:
        super().__init__(layout, [rows], rows.count, engine_stream)

    def _moves(self, block: int, layers: range, pages: int) -> Sequence[Move]:
        width = self._layer_bytes
        stretch = self._arrays[0][block : block + 1, layers.start * width : layers.stop * width]
        if pages == self._pages:
            return ((stretch, None, 0),)
        starts = range(0, len(layers) * width, width)
        return [move for at in starts for move in self._tensors(stretch[:, at : at + width], at, pages)]


class _LayeredBlocks(_Blocks):
    """One array per layer, each block after block."""

    def __init__(self, layout: Layout, per_layer: Sequence[Rows], engine_stream: int) -> None:
        super().__init__(layout, per_layer, per_layer[0].count, engine_stream)

    def _moves(self, block: int, layers: range, pages: int) -> Sequence[Move]:
        width = self._layer_bytes
        rows = [self._arrays[layer][block : block + 1] for layer in layers]
        if pages == self._pages:
            return [(row, None, i * width) for i, row in enumerate(rows)]
        return [move for i, row in enumerate(rows) for move in self._tensors(row, i * width, pages)]


class _PagedBlocks(_Blocks):
    """Pools of pages, and the ids of a request's pages."""

    def __init__(self, layout: Layout, pools: Sequence[Rows], ids: npt.NDArray[np.intp], engine_stream: int) -> None:
        per_block = layout.pages_per_block
        super().__init__(layout, pools, -(-ids.size // per_block), engine_stream)
        self._ids = [ids[start : start + per_block] for start in range(0, ids.size, per_block)]
        # Neighbouring pages are one stretch of bytes.
        self._neighbours = [bool((np.diff(block) == 1).all()) for block in self._ids]
        self._tensors_per_layer = layout.group.tensors

    def _moves(self, block: int, layers: range, pages: int) -> Sequence[Move]:
        ids = self._ids[block]
        if pages > ids.size:
            raise BufferMismatch(f"block {block} of {self!r} has {ids.size} pages in the block table, not {pages}")
        pools = self._arrays[layers.start * self._tensors_per_layer : layers.stop * self._tensors_per_layer]
        step = self._tensor_bytes
        if self._neighbours[block]:
            first = int(ids[0])
            return [(pool[first : first + pages], None, i * step) for i, pool in enumerate(pools)]
        return [(pool, ids[:pages], i * step) for i, pool in enumerate(pools)]
