"""The program of a far side: a fabric of the kind that is its argument. It does what it reads, one JSON list per line,
and answers each line."""

import asyncio
import json
import sys

from kvstore.config import FabricConfig
from kvstore.fabric import make_fabric
from tests.contracts.fabric import pattern


async def main() -> None:
    fabric = make_fabric(FabricConfig(kind=sys.argv[1], device="lo"))
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
