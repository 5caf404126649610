"""Custody: the catalog's decisions, carried out.

The catalog decides and returns the memory work still to do; `settle` does it before anything else runs, so no await
ever lies between a decision and its effect on shared memory. Everything here belongs to the event loop's thread.
"""

import time
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from kvstore.blocks.state import Tier
from kvstore.errors import KVStoreError
from kvstore.fabric.base import Buffer
from kvstore.node.catalog import (
    Action,
    Catalog,
    CloseSlab,
    Damaged,
    Forget,
    OpenSlab,
    Place,
    Prolong,
    Record,
    SetGeneration,
)
from kvstore.node.tiers.base import SlabFiles, TierMemory


class Custody:
    """One node's catalog, the memory of its tiers, and the files of the NVMe tier where it has one."""

    def __init__(
        self,
        catalog: Catalog,
        memories: Mapping[Tier, TierMemory],
        clock: Callable[[], int] = time.monotonic_ns,
        files: SlabFiles | None = None,
    ) -> None:
        self.catalog = catalog
        self.memories = memories
        self.files = files
        self.clock = clock
        self.on_records: Callable[[list[Record]], None] = lambda records: None
        self.on_settled: Callable[[], None] = lambda: None
        self.on_damaged: Callable[[Damaged], None] = lambda damaged: None
        self._tenants: dict[int, str] = {}

    def settle(self) -> None:
        """Carries out what the catalog decided since the last call.

        Raises what a tier's memory raised when it could not make a slab (Refused where the system has no room): the
        decision that wanted the slab is undone then, everything else is done.
        """
        failure: KVStoreError | None = None
        refused: set[int] = set()
        for action in self.catalog.take_actions():
            if action.slab_id in refused:
                continue
            if action.tier is Tier.NVME:
                assert self.files is not None
                _note(self.files, action)
                continue
            try:
                self._carry_out(action)
            except KVStoreError as error:
                failure = failure or error
                refused.add(action.slab_id)
                self.catalog.refuse_slab(action.tier, action.slab_id)
        records = self.catalog.take_records()
        if records:
            self.on_records(records)
        for damaged in self.catalog.take_damaged():
            self.on_damaged(damaged)
        self.on_settled()
        if failure is not None:
            raise failure

    def _carry_out(self, action: Action) -> None:
        memory = self.memories[action.tier]
        if isinstance(action, OpenSlab):
            memory.open_slab(action.slab_id, action.slab_bytes, action.slot_bytes, action.tenant)
            self._tenants[action.slab_id] = action.tenant
        elif isinstance(action, SetGeneration):
            memory.set_generation(action.slab_id, action.slot, action.generation)
        elif isinstance(action, CloseSlab):
            del self._tenants[action.slab_id]
            memory.close_slab(action.slab_id)

    def slab_tenant(self, slab_id: int) -> str:
        """Raises KeyError for a slab that is not open."""
        return self._tenants[slab_id]

    def view(self, place: Place, offset: int, length: int) -> Buffer:
        """The bytes of a place, for the fabric."""
        return self.memories[place.tier].view(place.slab_id, place.offset + offset, length)

    def read(self, place: Place, offset: int, length: int) -> npt.NDArray[np.uint8]:
        """A copy in host memory; blocks, so call it from a thread, under a pin."""
        out = np.empty(length, np.uint8)
        self.memories[place.tier].read(place.slab_id, place.offset + offset, out)
        return out

    def tick(self) -> None:
        """Expiry and leases; called by the sweeper."""
        self.catalog.tick(self.clock())
        self.settle()

    def close(self) -> None:
        for memory in self.memories.values():
            memory.close()


def _note(files: SlabFiles, action: Action) -> None:
    if isinstance(action, OpenSlab):
        files.open_slab(action.slab_id, action.slot_bytes, action.tenant, action.bank)
    elif isinstance(action, CloseSlab):
        files.close_slab(action.slab_id)
    elif isinstance(action, Forget):
        files.forget(action.slab_id, action.slot, action.generation)
    elif isinstance(action, Prolong):
        files.prolong(action.slab_id, action.slot, action.deadline_ns)
    # A generation reaches the device in the header and the entry of what is written there.
