"""NIXL with its UCX backend: one transfer of all blocks, its descriptors prepared before, as documented."""

import argparse
import base64
import json
import time

from nixl_cu12 import nixl_agent, nixl_agent_config, nixl_xfer_handle

from kvbench.rivals.content import Blocks, Bytes
from kvbench.rivals.movers import serve

_BACKEND = "UCX"
_DEADLINE_S = 60.0


class NixlMover:
    def __init__(self, name: str, memory: Bytes) -> None:
        self._agent = nixl_agent(name, nixl_agent_config(backends=[_BACKEND]))
        self._first, self._bytes = memory.ctypes.data, memory.nbytes
        self._registered = self._agent.register_memory([(self._first, self._bytes, 0, "")], "DRAM")
        self._peer, self._peer_first = "", 0
        self._handles: dict[tuple[int, int], nixl_xfer_handle] = {}

    def address(self) -> str:
        return json.dumps([base64.b64encode(self._agent.get_agent_metadata()).decode(), self._first])

    def join(self, peer: str) -> None:
        metadata, self._peer_first = json.loads(peer)
        said = self._agent.add_remote_agent(base64.b64decode(metadata))
        self._peer = said.decode() if isinstance(said, bytes) else said

    def give(self, blocks: Blocks) -> None:
        handle = self._handle(blocks)
        state = self._agent.transfer(handle)
        deadline = time.monotonic() + _DEADLINE_S
        while state == "PROC" and time.monotonic() < deadline:
            state = self._agent.check_xfer_state(handle)
        if state != "DONE":
            raise RuntimeError(f"transfer: {state}")

    def take(self, blocks: Blocks) -> None:
        """The giver's transfer is done when the bytes are there."""

    def close(self) -> None:
        for handle in self._handles.values():
            self._agent.release_xfer_handle(handle)
        self._agent.deregister_memory(self._registered)

    def _handle(self, blocks: Blocks) -> "nixl_xfer_handle":
        """Made once for all transfers of blocks of one size and number."""
        key = blocks.count, blocks.block_bytes
        if key not in self._handles:
            self._handles[key] = self._agent.initialize_xfer(
                "WRITE", self._descriptors(blocks, self._first), self._descriptors(blocks, self._peer_first), self._peer
            )
        return self._handles[key]

    def _descriptors(self, blocks: Blocks, first: int) -> object:
        offsets = range(0, blocks.bytes, blocks.block_bytes)
        return self._agent.get_xfer_descs([(first + offset, blocks.block_bytes, 0) for offset in offsets], "DRAM")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--bytes", type=int, required=True)
    args = parser.parse_args()
    serve(lambda memory: NixlMover(args.name, memory), args.bytes)
