"""Buffers: one contract for every kind of buffer in every kind of memory, and what is refused."""

import ctypes
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.blocks.layout import LayerGroup, Layout
from kvstore.client import buffers
from kvstore.client.buffers import KVBuffers, Piece
from kvstore.errors import BufferMismatch

LAYERS, PAGES, TABLE = 3, 19, [7, 3, 11, 10, 12, 13, 14, 15, 18, 2]
BLOCKS = 3
LAYOUT = Layout.dense(layers=LAYERS, kv_heads=2, head_dim=12, page_tokens=16)
PAGE, LAYER, BLOCK = LAYOUT.group.page_bytes, LAYOUT.layer_bytes, LAYOUT.block_bytes


class Numpy:
    """Host arrays."""

    def place(self, host: np.ndarray) -> Any:
        return host.copy()

    def read(self, array: Any) -> np.ndarray:
        return np.asarray(array).reshape(-1).view(np.uint8)


class Torch(Numpy):
    """Host tensors of bfloat16, which NumPy does not have."""

    def __init__(self) -> None:
        self.torch = pytest.importorskip("torch")

    def place(self, host: np.ndarray) -> Any:
        return self.torch.from_numpy(host.copy()).view(self.torch.bfloat16)

    def read(self, array: Any) -> np.ndarray:
        return array.contiguous().view(self.torch.uint8).numpy().reshape(-1)


class Cupy(Numpy):
    """Device arrays, or their double."""

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy

    def place(self, host: np.ndarray) -> Any:
        return self.cupy.asarray(host.copy())

    def read(self, array: Any) -> np.ndarray:
        return array.get().reshape(-1)


class CupyDouble(Cupy):
    def read(self, array: Any) -> np.ndarray:
        return array.view(np.ndarray).reshape(-1)


@pytest.fixture(
    params=[
        "numpy",
        pytest.param("torch", marks=pytest.mark.engine),
        "cupy double",
        pytest.param("cupy", marks=pytest.mark.cuda),
    ]
)
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Numpy]:
    """Where the engine's arrays lie."""
    if request.param == "numpy":
        yield Numpy()
    elif request.param == "torch":
        yield Torch()
    elif request.param == "cupy double":
        monkeypatch.setitem(sys.modules, "cupy", request.getfixturevalue("cupy_double"))
        yield CupyDouble()
    else:
        cupy = pytest.importorskip("cupy")
        if not cupy.cuda.is_available():
            pytest.skip("no GPU")
        yield Cupy()


class Engine:
    """An engine's arrays of one kind, filled at random, and the block bytes that they must amount to."""

    def __init__(self, kind: str, memory: Numpy, seed: int) -> None:
        self.kind, self.memory = kind, memory
        fill = np.random.default_rng(seed)

        def host(*shape: int) -> np.ndarray:
            return fill.integers(0, 256, shape, np.uint8)

        if kind == "whole":
            blocks = host(BLOCKS, LAYERS, LAYER)
            self.arrays = [memory.place(blocks)]
            self.kv = buffers.contiguous(self.arrays[0], LAYOUT)
            self.expected = blocks.reshape(BLOCKS, BLOCK)
        elif kind == "layered":
            layers = [host(BLOCKS, LAYER) for _ in range(LAYERS)]
            self.arrays = [memory.place(layer) for layer in layers]
            self.kv = buffers.contiguous(self.arrays, LAYOUT)
            self.expected = np.concatenate(layers, axis=1)
        else:
            self._page(kind, host)

    def _page(self, kind: str, host: Any) -> None:
        pools = host(LAYERS, 2, PAGES, PAGE)
        if kind == "paged":
            self.arrays = [self.memory.place(pool) for layer in pools for pool in layer]
            layers: Sequence[Any] = [self.arrays[2 * i : 2 * i + 2] for i in range(LAYERS)]
        elif kind == "paged, K and V in one tensor":
            self.arrays = [self.memory.place(layer) for layer in pools]
            layers = self.arrays
        else:
            self.arrays = [self.memory.place(layer.transpose(1, 0, 2).copy()) for layer in pools]
            layers = [(layer[:, 0], layer[:, 1]) for layer in self.arrays]
        self.kv = buffers.paged(layers, TABLE, LAYOUT)
        whole = np.zeros((BLOCKS, LAYERS, 2, 4, PAGE), np.uint8)
        for place, page in enumerate(TABLE):
            whole[place // 4, :, :, place % 4] = pools[:, :, page]
        self.expected = whole.reshape(BLOCKS, BLOCK)

    def block_pages(self, block: int) -> int:
        return 2 if self.kind.startswith("paged") and block == 2 else 4

    def bytes(self) -> np.ndarray:
        return np.concatenate([self.memory.read(array) for array in self.arrays])


KINDS = ["whole", "layered", "paged", "paged, K and V in one tensor", "paged, V beside K in a page"]
RANGES = [(0, 1), (0, LAYERS), (1, 2), (2, 1)]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestContract:
    def test_gather_gives_the_layer_blocks_in_order(self, kind: str, memory: Numpy) -> None:
        """A range of layers comes out as the plain concatenation of its layer blocks."""
        engine = Engine(kind, memory, 1)
        for block in range(2):
            for first, layers in RANGES:
                out = np.full(layers * LAYER, 0xEE, np.uint8)
                engine.kv.gather(block, first, layers, out)
                assert np.array_equal(out, engine.expected[block, first * LAYER : (first + layers) * LAYER])

    def test_scatter_puts_back_what_gather_took(self, kind: str, memory: Numpy) -> None:
        """Every block scattered, range by range, makes the target's bytes those of the source."""
        source, target = Engine(kind, memory, 1), Engine(kind, memory, 2)
        for block in range(BLOCKS):
            pages = source.block_pages(block)
            for first, layers in ((0, 1), (1, 2)):
                slot = np.empty(layers * LAYER, np.uint8)
                source.kv.gather(block, first, layers, slot, pages)
                target.kv.scatter(block, first, layers, slot, pages)
        whole = np.empty(BLOCK, np.uint8)
        for block in range(BLOCKS):
            target.kv.gather(block, 0, LAYERS, whole, source.block_pages(block))
            assert np.array_equal(whole, source.expected[block])

    def test_scatter_touches_nothing_else(self, kind: str, memory: Numpy) -> None:
        """Scattering one layer of one block changes exactly that layer block's bytes."""
        engine = Engine(kind, memory, 1)
        before = engine.bytes()
        engine.kv.scatter(1, 1, 1, ~engine.expected[1, LAYER : 2 * LAYER])
        changed = before != engine.bytes()
        assert int(changed.sum()) == LAYER
        engine.kv.scatter(1, 1, 1, engine.expected[1, LAYER : 2 * LAYER])
        assert np.array_equal(before, engine.bytes())

    def test_absent_pages_are_zeros_in_the_slot(self, kind: str, memory: Numpy) -> None:
        """Of a partial block, the first pages of each tensor come out and the rest is zero."""
        engine = Engine(kind, memory, 1)
        out = np.full(BLOCK, 0xEE, np.uint8)
        engine.kv.gather(0, 0, LAYERS, out, pages=2)
        expected = engine.expected[0].reshape(LAYERS, 2, 4, PAGE).copy()
        expected[:, :, 2:] = 0
        assert np.array_equal(out, expected.reshape(-1))

    def test_absent_pages_are_left_alone_in_the_engine(self, kind: str, memory: Numpy) -> None:
        """Scattering a partial block writes its pages and no byte of the others."""
        engine = Engine(kind, memory, 1)
        before = engine.bytes()
        engine.kv.scatter(0, 0, LAYERS, ~engine.expected[0], pages=3)
        assert int((before != engine.bytes()).sum()) == LAYERS * 2 * 3 * PAGE
        out = np.empty(BLOCK, np.uint8)
        engine.kv.gather(0, 0, LAYERS, out)
        kept = out.reshape(LAYERS, 2, 4, PAGE)[:, :, 3]
        assert np.array_equal(kept, engine.expected[0].reshape(LAYERS, 2, 4, PAGE)[:, :, 3])

    def test_many_is_the_same_as_one_by_one(self, kind: str, memory: Numpy) -> None:
        """The batched form moves each of its pieces as the single form does."""
        source, target = Engine(kind, memory, 1), Engine(kind, memory, 2)
        slots = [np.full(2 * LAYER, 0xEE, np.uint8) for _ in range(BLOCKS)]
        pieces = [Piece(block, 1, 2, slots[block], source.block_pages(block)) for block in range(BLOCKS)]
        source.kv.gather_many(pieces)
        for block, slot in enumerate(slots):
            assert np.array_equal(slot, source.expected[block, LAYER:])
        target.kv.scatter_many(pieces)
        again = np.empty(2 * LAYER, np.uint8)
        for block, slot in enumerate(slots):
            target.kv.gather(block, 1, 2, again, source.block_pages(block))
            assert np.array_equal(again, slot)

    def test_nothing_outside_is_reached(self, kind: str, memory: Numpy) -> None:
        """A block behind the last one is refused in both directions."""
        kv: KVBuffers = Engine(kind, memory, 1).kv
        assert kv.blocks == BLOCKS
        assert kv.writable
        for block in (-1, BLOCKS):
            with pytest.raises(BufferMismatch, match=f"block {block} of"):
                kv.gather(block, 0, 1, np.empty(LAYER, np.uint8))
            with pytest.raises(BufferMismatch, match=f"block {block} of"):
                kv.scatter(block, 0, 1, np.empty(LAYER, np.uint8))


@given(st.data())
def test_any_layout_any_table_any_range(data: st.DataObject) -> None:
    """Paged buffers of arbitrary layouts agree with a copy made page by page, in both directions."""
    tokens, per_block = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 5))
    group = LayerGroup(
        layers=data.draw(st.integers(1, 4)),
        page_tokens=tokens,
        page_bytes=data.draw(st.integers(1, 33)),
        dtype="opaque",
        tensors=data.draw(st.integers(1, 2)),
    )
    layout = Layout((group,), block_tokens=tokens * per_block)
    table = data.draw(st.lists(st.integers(0, 23), min_size=1, max_size=14, unique=True))
    pools = np.random.default_rng(5).integers(1, 256, (group.layers, group.tensors, 24, group.page_bytes), np.uint8)
    block = data.draw(st.integers(0, (len(table) - 1) // per_block))
    ids = table[block * per_block : (block + 1) * per_block]
    pages = data.draw(st.integers(1, len(ids)))
    first = data.draw(st.integers(0, group.layers - 1))
    layers = data.draw(st.integers(1, group.layers - first))

    expected = np.zeros((layers, group.tensors, per_block, group.page_bytes), np.uint8)
    for place, page in enumerate(ids[:pages]):
        expected[:, :, place] = pools[first : first + layers, :, page]
    out = np.full(layers * layout.layer_bytes, 0xEE, np.uint8)
    buffers.paged(pools.copy(), table, layout).gather(block, first, layers, out, pages)
    assert np.array_equal(out, expected.reshape(-1))

    empty = np.zeros_like(pools)
    buffers.paged(empty, table, layout).scatter(block, first, layers, out, pages)
    wanted = np.zeros_like(pools)
    for page in ids[:pages]:
        wanted[first : first + layers, :, page] = pools[first : first + layers, :, page]
    assert np.array_equal(empty, wanted)


def test_pages_beyond_the_table_are_refused() -> None:
    """The last block has the pages that the block table gives it, and a whole one cannot be taken from it."""
    kv = Engine("paged", Numpy(), 1).kv
    with pytest.raises(BufferMismatch, match="has 2 pages in the block table, not 4"):
        kv.gather(2, 0, 1, np.empty(LAYER, np.uint8))


def test_one_launch_moves_many_pieces_on_a_gpu(cupy_double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer group of several blocks costs one kernel launch, whatever the number of pages and pools."""
    monkeypatch.setitem(sys.modules, "cupy", cupy_double)
    engine = Engine("paged", CupyDouble(), 1)
    pieces = [Piece(block, 0, LAYERS, np.empty(BLOCK, np.uint8)) for block in range(2)]
    engine.kv.gather_many(pieces)
    engine.kv.scatter_many(pieces)
    assert cupy_double.launches == 2


def test_copies_on_a_gpu_wait_for_the_engine_and_are_waited_for(
    cupy_double: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our stream waits for an event on the engine's stream before it copies, and the call for our stream after it."""
    monkeypatch.setitem(sys.modules, "cupy", cupy_double)
    kv: Any = Engine("whole", CupyDouble(), 1).kv
    kv.gather(0, 0, LAYERS, np.empty(BLOCK, np.uint8))
    assert (kv._copy._stream.waited, kv._copy._stream.synchronized) == (1, 1)


def test_rows_longer_than_a_stretch_are_moved_in_full(cupy_double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a long row is cut into stretches; together they are the row."""
    monkeypatch.setitem(sys.modules, "cupy", cupy_double)
    layout = Layout((LayerGroup(layers=2, page_tokens=64, page_bytes=50_000, dtype="opaque"),))
    host = np.random.default_rng(3).integers(0, 256, (2, layout.block_bytes), np.uint8)
    out = np.empty(layout.layer_bytes, np.uint8)
    buffers.contiguous(cupy_double.asarray(host), layout).gather(1, 1, 1, out)
    assert np.array_equal(out, host[1, layout.layer_bytes :])


# ---- what may be passed ----------------------------------------------------------------------------------------------


class _ByArrayInterface:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.__array_interface__ = array.__array_interface__


class _ByDlpack:
    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


@pytest.mark.parametrize(
    "wrap",
    [
        lambda array: array,
        lambda array: array.reshape(-1),
        lambda array: array.view(np.float16),
        lambda array: array.reshape(BLOCKS, LAYERS, 2, 4, 16, 2, -1),
        lambda array: memoryview(array),
        lambda array: bytearray(array.tobytes()),
        lambda array: (ctypes.c_char * array.nbytes).from_buffer(array),
        _ByArrayInterface,
        _ByDlpack,
    ],
    ids=["array", "flat", "float16", "many axes", "memoryview", "bytearray", "ctypes", "array interface", "dlpack"],
)
def test_host_memory_of_every_protocol(wrap: Any) -> None:
    """Whatever gives access to host bytes can be read and written in place."""
    blocks = np.random.default_rng(4).integers(0, 256, (BLOCKS, LAYERS, LAYER), np.uint8)
    source = wrap(blocks)
    kv = buffers.contiguous(source, LAYOUT)
    out = np.empty(BLOCK, np.uint8)
    kv.gather(1, 0, LAYERS, out)
    assert np.array_equal(out, blocks[1].reshape(-1))
    kv.scatter(2, 0, LAYERS, out)
    seen = np.frombuffer(source, np.uint8) if isinstance(source, bytearray) else blocks
    assert np.array_equal(seen.reshape(BLOCKS, -1)[2], out)


@pytest.mark.parametrize("read_only", [bytes(BLOCK), np.frombuffer(bytes(BLOCK), np.uint8)], ids=["bytes", "array"])
def test_read_only_memory_is_a_source_but_no_target(read_only: Any) -> None:
    """Bytes can be gathered from; scattering into them is refused before anything moves."""
    kv = buffers.contiguous(read_only, LAYOUT)
    kv.gather(0, 0, 1, np.empty(LAYER, np.uint8))
    assert not kv.writable
    with pytest.raises(BufferMismatch, match="is read-only"):
        kv.scatter(0, 0, 1, np.empty(LAYER, np.uint8))


def test_a_memory_map_is_an_array(tmp_path: Path) -> None:
    """A file mapped by NumPy is host memory like any other."""
    mapped = np.memmap(tmp_path / "kv", np.uint8, "w+", shape=(BLOCKS, BLOCK))
    buffers.contiguous(mapped, LAYOUT).scatter(1, 0, LAYERS, np.full(BLOCK, 7, np.uint8))
    assert int(np.asarray(mapped).sum()) == 7 * BLOCK


@pytest.mark.engine
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int16", "uint8", "float8_e4m3fn"])
def test_torch_tensors_by_their_bytes(dtype: str) -> None:
    """A tensor of any element type of the layout's size, with gradients or without, is seen as its bytes."""
    torch = pytest.importorskip("torch")
    raw = torch.randint(0, 256, (BLOCKS, BLOCK), dtype=torch.uint8)
    tensor = raw.view(getattr(torch, dtype))
    if tensor.is_floating_point() and tensor.element_size() > 1:
        tensor.requires_grad_()
    out = np.empty(LAYER, np.uint8)
    buffers.contiguous(tensor, LAYOUT).gather(2, 1, 1, out)
    assert np.array_equal(out, raw[2, LAYER : 2 * LAYER].numpy())


# ---- what is refused -------------------------------------------------------------------------------------------------


class _DeviceArray:
    __cuda_array_interface__ = {"shape": (BLOCKS, BLOCK), "typestr": "|u1", "data": (4096, False), "version": 3}  # noqa: RUF012 (the protocol's own form)


def _u8(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (_u8(BLOCK - 1), rf"uint8\[{BLOCK - 1}\] on cpu, {BLOCK - 1} bytes; one block of .* has {BLOCK} bytes"),
        (_u8(BLOCK + 1), "no whole number of blocks"),
        (_u8(LAYERS, 2, LAYER), f"{2 * LAYER} per block; the layout has {BLOCK}"),
        (_u8(2 * LAYERS, LAYER), f"{LAYER} per block; the layout has {BLOCK}"),
        (_u8(2, 2 * LAYERS, LAYER // 2), f"second axis must be the layout's {LAYERS} layers"),
        (_u8(BLOCKS, 2 * BLOCK)[:, ::2], "not contiguous within its rows"),
        (_u8(BLOCKS, 2, LAYERS, LAYER // 2).transpose(0, 2, 1, 3), "not contiguous within its rows"),
        (_u8(2 * BLOCK)[::2], "not contiguous"),
        (np.zeros((BLOCKS, BLOCK // 4), np.float32), r"4 bytes per element, the layout's bfloat16 has 2"),
        (np.zeros((0, BLOCK), np.uint8), "has no rows of bytes"),
        (np.uint8(1), "has no rows of bytes"),
        (np.array([object()]), "array of Python objects"),
        (object(), "neither the buffer protocol nor an array interface"),
        (_ByDlpack(_u8(BLOCK), (8, 0)), "DLPack device type 8 cannot be reached"),
        ([_u8(BLOCKS, LAYER)] * 2, "2 arrays, one per layer; the layout has 3"),
        ([_u8(BLOCKS, LAYER - 2)] * 3, f"{LAYER - 2} per layer of a block; the layout has {LAYER}"),
        ([_u8(BLOCKS, LAYER), _u8(BLOCKS, LAYER), _u8(2, LAYER)], r"layer 2: uint8\[2, .*layer 0 has 3 blocks"),
    ],
)
def test_contiguous_refuses(source: Any, text: str) -> None:
    """What cannot be blocks of this layout is refused with its shape, its bytes and the layout's."""
    with pytest.raises(BufferMismatch, match=text):
        buffers.contiguous(source, LAYOUT)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ([0, 19], r"ids 0 … 19; the pools have 19 pages"),
        ([-1, 2], r"ids -1 … 2; the pools have 19 pages"),
        ([4, 5, 4], "stands twice among its 3"),
        ([], "non-empty list of page ids"),
        ([[1, 2]], "non-empty list of page ids"),
        ([1.5], "non-empty list of page ids"),
    ],
)
def test_paged_refuses_a_block_table(table: Any, text: str) -> None:
    """Ids outside the pool, ids that stand twice, and what is no list of ids are refused."""
    pools = [[_u8(PAGES, PAGE)] * 2] * LAYERS
    with pytest.raises(BufferMismatch, match=text):
        buffers.paged(pools, table, LAYOUT)


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([[_u8(PAGES, PAGE)] * 2] * 2, "2 sequences of pools, one per layer; the layout has 3"),
        ([[_u8(PAGES, PAGE)]] * 3, "1 pools of layer 0; the layout has 2"),
        ([[_u8(PAGES, PAGE)] * 2] * 2 + [[_u8(PAGES, 8), _u8(PAGES, PAGE)]], "layer 2, pool 0: .* 8 per page"),
        ([[_u8(PAGES, PAGE), _u8(PAGES, 2 * PAGE)[:, ::2]]] * 3, "layer 0, pool 1: .* not contiguous"),
        ([[_u8(4, PAGE), _u8(PAGES, PAGE)]] * 3, "the pools have 4 pages"),
    ],
)
def test_paged_refuses_pools(layers: Any, text: str) -> None:
    """Pools that are too few, whose pages have another size or holes, or that lack the pages are refused by name."""
    with pytest.raises(BufferMismatch, match=text):
        buffers.paged(layers, [0, 5], LAYOUT)


@pytest.mark.engine
def test_torch_tensors_elsewhere_are_refused() -> None:
    """A tensor on a device whose memory cannot be reached is refused by the device's name."""
    torch = pytest.importorskip("torch")
    with pytest.raises(BufferMismatch, match=r"bfloat16\[3\] on meta cannot be reached"):
        buffers.contiguous(torch.empty(3, dtype=torch.bfloat16, device="meta"), LAYOUT)


def test_device_arrays_without_cupy_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CuPy a device array is refused with the names of the extras that bring it."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BufferMismatch, match="install the extra cu12 or cu13"):
        buffers.contiguous(_DeviceArray(), LAYOUT)


def test_one_request_lies_on_one_device(cupy_double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools on host and device at once are refused."""
    monkeypatch.setitem(sys.modules, "cupy", cupy_double)
    mixed = [[_u8(PAGES, PAGE), cupy_double.asarray(_u8(PAGES, PAGE))]] * LAYERS
    with pytest.raises(BufferMismatch, match="several devices: cpu, cuda:0"):
        buffers.paged(mixed, [0], LAYOUT)


@pytest.mark.parametrize("shift", [0, 1, 8, 16])
@pytest.mark.parametrize("row_bytes", [4096, 4097])
def test_rows_that_do_not_lie_in_words(shift: int, row_bytes: int) -> None:
    """Copied by words or by bytes, what leaves a slot is the same, and nothing beside it changes."""
    layout = Layout((LayerGroup(layers=2, page_tokens=16, page_bytes=row_bytes, dtype="uint8", tensors=1),))
    memory = np.zeros(3 * layout.block_bytes + 32, np.uint8)
    target = memory[shift : shift + 3 * layout.block_bytes].reshape(3, layout.block_bytes)
    source = np.random.default_rng(0).integers(0, 256, layout.block_bytes, dtype=np.uint8)
    buffers.contiguous(target, layout).scatter(1, 0, 2, source)
    assert np.array_equal(target[1], source)
    assert not target[::2].any()
    assert not memory[:shift].any()
