"""Copies between slots and device memory, with CuPy's part played by NumPy: batched, verified, and slabs registered."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvstore.blocks.layout import Layout
from kvstore.blocks.state import SLAB_CLOSED, Outcome
from kvstore.client import buffers
from kvstore.client.copying import Copier, ReadyPiece, Slot, SlotWrite
from kvstore.client.slabs import Slab

LAYOUT = Layout.dense(layers=4, kv_heads=2, head_dim=64)


@pytest.fixture
def cupy(cupy_double: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The double in CuPy's place."""
    monkeypatch.setitem(sys.modules, "cupy", cupy_double)
    return cupy_double


def test_whole_blocks_go_to_slots_and_back(cupy: Any) -> None:
    """What was gathered from a device is verified and scattered back to it, and the slab is registered once."""
    slab = Slab(np.zeros(4 * LAYOUT.block_bytes, np.uint8), np.zeros(4, np.uint64), LAYOUT.block_bytes)
    copier = Copier(LAYOUT, SimpleNamespace(get=lambda slab_id: slab), verify=True)
    source = np.random.default_rng(1).integers(0, 256, (3, LAYOUT.block_bytes), dtype=np.uint8)
    target = cupy.asarray(np.zeros_like(source))
    slots = [Slot(1, i * LAYOUT.block_bytes, 0) for i in (2, 0, 3)]
    engine = buffers.contiguous(cupy.asarray(source), LAYOUT)
    sums = copier.write(engine, [SlotWrite(i, slot, None) for i, slot in enumerate(slots)], 0, LAYOUT.layers)
    pieces = [ReadyPiece(i, 0, LAYOUT.layers, slot, 0, sums[i], None) for i, slot in enumerate(slots)]

    outcomes = copier.read(buffers.contiguous(target, LAYOUT), pieces)
    assert outcomes == [Outcome.READY] * 3
    assert np.array_equal(source, target.view(np.ndarray))
    assert cupy.registered == {(slab.data.ctypes.data, slab.data.nbytes)}

    slab.release()
    assert not cupy.registered


def test_corrupt_and_stale_pieces_stay_out(cupy: Any) -> None:
    """A wrong byte is found before anything is scattered, a raised generation after."""
    slab = Slab(np.zeros(2 * LAYOUT.block_bytes, np.uint8), np.zeros(2, np.uint64), LAYOUT.block_bytes)
    copier = Copier(LAYOUT, SimpleNamespace(get=lambda slab_id: slab), verify=True)
    source = np.random.default_rng(2).integers(1, 256, (2, LAYOUT.block_bytes), dtype=np.uint8)
    slots = [Slot(1, 0, 0), Slot(1, LAYOUT.block_bytes, 0)]
    engine = buffers.contiguous(cupy.asarray(source), LAYOUT)
    sums = copier.write(engine, [SlotWrite(i, slot, None) for i, slot in enumerate(slots)], 0, LAYOUT.layers)
    slab.data[5] ^= 1
    slab.generations[1] = SLAB_CLOSED
    target = cupy.asarray(np.zeros_like(source))

    pieces = [ReadyPiece(i, 0, LAYOUT.layers, slot, 0, sums[i], None) for i, slot in enumerate(slots)]
    outcomes = copier.read(buffers.contiguous(target, LAYOUT), pieces)
    assert outcomes == [Outcome.CORRUPT, Outcome.STALE]
    assert not target.view(np.ndarray).any()
    assert slab.closed is False
