"""What every tier's memory must do. A test module subclasses `TierContract` and brings the fixture `memory`."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kvstore.node.tiers.base import TierMemory

SLOT_BYTES = 8192
SLAB_BYTES = 4 * SLOT_BYTES


def pattern(length: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, length, np.uint8)


class TierContract:
    """Inherit, and bring a fixture `memory`."""

    @pytest.fixture(autouse=True)
    def open_slab(self, memory: TierMemory) -> None:
        memory.open_slab(1, SLAB_BYTES, SLOT_BYTES, "tenant")

    def on_host(self, array: Any) -> npt.NDArray[np.uint8]:
        """A view's bytes as NumPy's."""
        return np.asarray(array.get() if hasattr(array, "get") else array)

    def test_reads_what_was_written(self, memory: TierMemory) -> None:
        """Any range, at any offset."""
        source = pattern(5000)
        memory.write(1, 123, source)
        out = np.zeros(5000, np.uint8)
        memory.read(1, 123, out)
        assert (out == source).all()

    def test_writing_leaves_the_neighbours_alone(self, memory: TierMemory) -> None:
        """The bytes before and behind a range stay."""
        memory.write(1, 0, np.full(SLAB_BYTES, 7, np.uint8))
        memory.write(1, SLOT_BYTES, np.zeros(SLOT_BYTES, np.uint8))
        out = np.empty(SLAB_BYTES, np.uint8)
        memory.read(1, 0, out)
        assert (out[:SLOT_BYTES] == 7).all()
        assert (out[SLOT_BYTES : 2 * SLOT_BYTES] == 0).all()
        assert (out[2 * SLOT_BYTES :] == 7).all()

    def test_a_source_may_be_reused_at_once(self, memory: TierMemory) -> None:
        """What is changed after `write` has returned does not arrive."""
        source = pattern(SLOT_BYTES)
        memory.write(1, 0, source)
        expected = source.copy()
        source[:] = 0
        out = np.empty(SLOT_BYTES, np.uint8)
        memory.read(1, 0, out)
        assert (out == expected).all()

    def test_a_view_is_the_memory_itself(self, memory: TierMemory) -> None:
        """Writes show in a view, and what is put into a view is there."""
        view = memory.view(1, SLOT_BYTES, SLOT_BYTES)
        assert (view.size, view.itemsize) == (SLOT_BYTES, 1)
        memory.write(1, SLOT_BYTES, pattern(SLOT_BYTES))
        assert (self.on_host(view) == pattern(SLOT_BYTES)).all()
        view[:10] = 9
        out = np.empty(10, np.uint8)
        memory.read(1, SLOT_BYTES, out)
        assert (out == 9).all()

    def test_slabs_are_apart(self, memory: TierMemory) -> None:
        """Two slabs share no byte."""
        memory.open_slab(2, SLOT_BYTES, SLOT_BYTES, "tenant")
        memory.write(1, 0, np.full(SLOT_BYTES, 1, np.uint8))
        memory.write(2, 0, np.full(SLOT_BYTES, 2, np.uint8))
        assert set(self.on_host(memory.view(1, 0, SLOT_BYTES))) == {1}

    def test_an_empty_range_is_a_range(self, memory: TierMemory) -> None:
        """Also at the end of a slab."""
        assert memory.view(1, SLAB_BYTES, 0).size == 0

    @pytest.mark.parametrize(("offset", "length"), [(-1, 10), (0, SLAB_BYTES + 1), (SLAB_BYTES, 1), (10, -1)])
    def test_a_range_beyond_the_slab_is_a_bug(self, memory: TierMemory, offset: int, length: int) -> None:
        """Never a shorter view."""
        with pytest.raises(AssertionError):
            memory.view(1, offset, length)

    def test_a_read_beyond_the_slab_is_a_bug(self, memory: TierMemory) -> None:
        """Nor a shorter copy, in either direction."""
        with pytest.raises(AssertionError):
            memory.read(1, SLAB_BYTES - 1, np.empty(2, np.uint8))
        with pytest.raises(AssertionError):
            memory.write(1, SLAB_BYTES - 1, np.empty(2, np.uint8))

    def test_a_view_outlives_its_slab(self, memory: TierMemory) -> None:
        """A posted send may still read from a slab that was closed."""
        memory.write(1, 0, pattern(SLOT_BYTES))
        view = memory.view(1, 0, SLOT_BYTES)
        memory.close_slab(1)
        assert (self.on_host(view) == pattern(SLOT_BYTES)).all()

    def test_a_closed_slab_gives_no_view(self, memory: TierMemory) -> None:
        """Its id is unknown from then on."""
        memory.close_slab(1)
        with pytest.raises(KeyError):
            memory.view(1, 0, 1)

    def test_every_slot_takes_a_generation_and_no_other(self, memory: TierMemory) -> None:
        """The words are as many as the slots."""
        for slot in range(SLAB_BYTES // SLOT_BYTES):
            memory.set_generation(1, slot, 2**40 + slot)
        with pytest.raises((AssertionError, IndexError)):
            memory.set_generation(1, SLAB_BYTES // SLOT_BYTES, 1)

    def test_a_slab_is_opened_once(self, memory: TierMemory) -> None:
        """An id is never given twice."""
        with pytest.raises(AssertionError):
            memory.open_slab(1, SLAB_BYTES, SLOT_BYTES, "tenant")

    def test_closing_twice_is_closing_once(self, memory: TierMemory) -> None:
        """And drops all slabs."""
        memory.close()
        memory.close()
        with pytest.raises(KeyError):
            memory.view(1, 0, 1)
