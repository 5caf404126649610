"""The program of a far side: a UCX fabric that does what it reads, one JSON list per line, and answers each line."""

import asyncio
import json
import sys

from kvstore.config import FabricConfig
from kvstore.fabric.ucx import UcxFabric
from tests.contracts.fabric import pattern


async def main() -> None:
    fabric = UcxFabric(FabricConfig(kind="ucx", device="lo"))
    print(fabric.address.hex(), flush=True)
    buffers = []
    peer = None
    while line := await asyncio.to_thread(sys.stdin.readline):
        verb, *arguments = json.loads(line)
        if verb == "connect":
            if peer is not None:
                await peer.close()
            peer = fabric.connect(bytes.fromhex(arguments[0]))
        else:
            tag, size = arguments
            buffers.append(pattern(size, tag))
            getattr(peer, verb)(tag, buffers[-1])
        print("done", flush=True)
    await fabric.close()


asyncio.run(main())
