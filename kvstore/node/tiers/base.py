"""A tier's memory: slabs of bytes, made and dropped as the catalog decides.

The contract, held by tests/contracts/tier.py for every implementation:

- A slab's bytes are zero or anything until they are written; nothing is ever read from before its opening.
- Views of a closed slab stay valid for those who have them; nobody gets a new one.
- Ranges that leave the slab are a bug of the caller (AssertionError), never a shorter view.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Buffer = Any
"""What a fabric sends from and receives into: a NumPy or a CuPy array of bytes."""


class TierMemory(Protocol):
    """Memory of one tier. `read` and `write` may be called from worker threads, all else belongs to one thread."""

    def open_slab(self, slab_id: int, slab_bytes: int, slot_bytes: int, tenant: str) -> None:
        """Makes a slab. Raises Refused when the system has no memory for it."""

    def close_slab(self, slab_id: int) -> None:
        """Drops a slab. Its memory is given back when the last view of it is gone."""

    def set_generation(self, slab_id: int, slot: int, generation: int) -> None:
        """Sets the generation word of a slot, where readers outside this process can see it."""

    def view(self, slab_id: int, offset: int, length: int) -> Buffer:
        """A range of bytes in place, writable, as an array uint8[length] of the tier's kind."""

    def read(self, slab_id: int, offset: int, out: npt.NDArray[np.uint8]) -> None:
        """Copies bytes out, to contiguous uint8[length] in host memory. Blocks until they are there."""

    def write(self, slab_id: int, offset: int, source: npt.NDArray[np.uint8]) -> None:
        """Copies bytes in, from contiguous uint8[length] in host memory. Blocks until `source` may be reused."""

    def close(self) -> None:
        """Drops all slabs. May be called twice."""


class SlabFiles(Protocol):
    """A tier on devices: what the catalog decided is noted at once, and reaches the device later, in that order.

    None of it fails: a device that cannot be written is found out by those who move bytes."""

    def open_slab(self, slab_id: int, slot_bytes: int, tenant: str, bank: int) -> None:
        """Gives the slab a file of the device."""

    def close_slab(self, slab_id: int) -> None:
        """Gives the file back."""

    def forget(self, slab_id: int, slot: int, generation: int) -> None:
        """The slot holds its block no more; the device must not name it once the slot is written again."""

    def prolong(self, slab_id: int, slot: int, deadline_ns: int) -> None:
        """The slot's block lives until then."""
