"""What a bank of the NVMe tier wants of a device: one's own, or one that was adopted and is only read."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kvstore.node.storage.batch import Batch
from kvstore.node.storage.clock import StoreClock
from kvstore.node.storage.entry import Entry
from kvstore.node.storage.recover import RecoveredSlab


class ServedDevice(Protocol):
    """See `kvstore.node.storage.device.Device`. read_only: nothing is ever written there."""

    path: Path
    slab_bytes: int
    direct: bool
    clock: StoreClock
    files_max: int
    read_only: bool

    @property
    def device_id(self) -> bytes: ...

    def take_recovered(self) -> list[RecoveredSlab]: ...

    def take_file(self) -> int: ...

    def give_file(self, file: int) -> None: ...

    def write(self, file: int, offset: int, parts: Sequence[Any]) -> None: ...

    def read(self, file: int, offset: int, out: npt.NDArray[np.uint8]) -> None: ...

    def read_header(self, file: int, offset: int) -> Entry: ...

    def commit(
        self, batch: Batch, labels: Sequence[tuple[int, int, str]], unsynced: Collection[int], *, sync: bool
    ) -> None: ...

    def close(self) -> None: ...
