"""The program of senders that are to die: for each line that it reads, a JSON list of a receiver's address, the size of
messages and their tags, it forks one, which prints its process id and its address, and sends when it is told to."""

import asyncio
import json
import os
import sys

import numpy as np

from kvstore.config import FabricConfig
from kvstore.fabric import make_fabric
from kvstore.fabric.ucx_context import library
from tests.fabric.dying import GO


async def stream(receiver: str, size: int, tags: list[int]) -> None:
    fabric = make_fabric(FabricConfig(kind=sys.argv[1], device="lo"))
    peer = fabric.connect(bytes.fromhex(receiver))
    told = peer.receive(GO, bytearray(1))
    print(os.getpid(), fabric.address.hex(), flush=True)
    await told
    source = np.ones(size, np.uint8)
    await asyncio.gather(*(peer.send(tag, source) for tag in tags))
    await asyncio.sleep(60)


if sys.argv[1] == "ucx":
    library()  # imported once: a sender starts within milliseconds
for line in sys.stdin:
    if os.fork() == 0:
        asyncio.run(stream(*json.loads(line)))
        sys.exit()
