"""Mooncake's Transfer Engine: one batch of writes from registered memory into registered memory."""

import argparse
import json

from mooncake.engine import TransferEngine

from kvbench.rivals.content import Blocks, Bytes
from kvbench.rivals.movers import serve


class MooncakeMover:
    def __init__(self, host: str, memory: Bytes) -> None:
        self._engine = TransferEngine()
        self._host = host
        self._first = memory.ctypes.data
        _expect_zero(self._engine.initialize(host, "P2PHANDSHAKE", "tcp", ""), "initialize")
        _expect_zero(self._engine.register_memory(self._first, memory.nbytes), "register_memory")
        self._peer, self._peer_first = "", 0

    def address(self) -> str:
        return json.dumps([f"{self._host}:{self._engine.get_rpc_port()}", self._first])

    def join(self, peer: str) -> None:
        self._peer, self._peer_first = json.loads(peer)

    def give(self, blocks: Blocks) -> None:
        offsets = range(0, blocks.bytes, blocks.block_bytes)
        code = self._engine.batch_transfer_sync_write(
            self._peer,
            [self._first + offset for offset in offsets],
            [self._peer_first + offset for offset in offsets],
            [blocks.block_bytes] * blocks.count,
        )
        _expect_zero(code, "batch_transfer_sync_write")

    def take(self, blocks: Blocks) -> None:
        """The giver's call ends when the bytes are there."""

    def close(self) -> None:
        self._engine.unregister_memory(self._first)


def _expect_zero(code: int, what: str) -> None:
    if code != 0:
        raise RuntimeError(f"{what}: {code}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True, help="this host's address")
    parser.add_argument("--bytes", type=int, required=True)
    args = parser.parse_args()
    serve(lambda memory: MooncakeMover(args.host, memory), args.bytes)
