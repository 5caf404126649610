"""Mooncake Store: puts from and gets into registered memory, many keys a call, which is its fastest way.

Its answers are codes: 0 or a size, or a negative number. A put of a key that is there says 0 and keeps the old value,
so keys are never used twice.
"""

import argparse

from mooncake.store import MooncakeDistributedStore, ReplicateConfig

from kvbench.rivals.content import Blocks, Bytes
from kvbench.rivals.stores import serve

_LOCAL_BUFFER_BYTES = 64 * 1024 * 1024


class MooncakeStore:
    """segment_bytes: memory that this process lends to the store; 0: it is a client and nothing else."""

    def __init__(self, host: str, master: str, segment_bytes: int) -> None:
        self._store = MooncakeDistributedStore()
        code = self._store.setup(host, "P2PHANDSHAKE", segment_bytes, _LOCAL_BUFFER_BYTES, "tcp", "", master)
        if code != 0:
            raise RuntimeError(f"setup: {code}")
        self._own_segment = self._store.get_hostname() if segment_bytes else ""

    def registered(self, memory: Bytes) -> None:
        _expect(0, self._store.register_buffer(memory.ctypes.data, memory.nbytes), "register_buffer")

    def put(self, blocks: Blocks, source: Bytes, copies: int) -> int:
        config = ReplicateConfig()
        config.replica_num = copies
        if self._own_segment:
            config.preferred_segment = self._own_segment
        codes: list[int] = self._store.batch_put_from(blocks.keys, *_places(blocks, source), config)
        return codes.count(0)

    def readable(self, blocks: Blocks) -> int:
        return _leading([code == 1 for code in self._store.batch_is_exist(blocks.keys)])

    def copies(self, blocks: Blocks) -> int:
        found = self._store.batch_get_replica_desc(blocks.keys)
        return min(len(found.get(key, [])) for key in blocks.keys)

    def get(self, blocks: Blocks, target: Bytes) -> int:
        codes = self._store.batch_get_into(blocks.keys, *_places(blocks, target))
        return _leading([code == blocks.block_bytes for code in codes])

    def forget(self, blocks: Blocks) -> None:
        self._store.batch_remove(blocks.keys, True)

    def close(self) -> None:
        self._store.close()


def _places(blocks: Blocks, memory: Bytes) -> tuple[list[int], list[int]]:
    first = memory.ctypes.data
    return [first + number * blocks.block_bytes for number in range(blocks.count)], [blocks.block_bytes] * blocks.count


def _leading(came: list[bool]) -> int:
    return came.index(False) if False in came else len(came)


def _expect(wanted: int, code: int, what: str) -> None:
    if code != wanted:
        raise RuntimeError(f"{what}: {code}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True, help="this host's address")
    parser.add_argument("--master", required=True, metavar="HOST:PORT")
    parser.add_argument("--segment-bytes", type=int, default=0)
    args = parser.parse_args()
    serve(lambda: MooncakeStore(args.host, args.master, args.segment_bytes))
