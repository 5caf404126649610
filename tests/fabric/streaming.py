"""The program of senders that are to die: for each line that it reads, a JSON list of a receiver's address, the size of
messages and their tags, it forks one, which prints its process id and its address, sends, and waits."""

import asyncio
import json
import os
import sys

import numpy as np

from kvstore.config import FabricConfig
from kvstore.fabric.ucx import UcxFabric
from kvstore.fabric.ucx_context import library


async def stream(receiver: str, size: int, tags: list[int]) -> None:
    fabric = UcxFabric(FabricConfig(kind="ucx", device="lo"))
    print(os.getpid(), fabric.address.hex(), flush=True)
    peer = fabric.connect(bytes.fromhex(receiver))
    source = np.ones(size, np.uint8)
    await asyncio.gather(*(peer.send(tag, source) for tag in tags))
    await asyncio.sleep(60)


library()  # imported once: a sender starts within milliseconds
for line in sys.stdin:
    if os.fork() == 0:
        asyncio.run(stream(*json.loads(line)))
        sys.exit()
