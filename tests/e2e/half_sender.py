"""A prefill engine in a process of its own that offers a prompt, writes half of its layers and is then waited for.

python half_sender.py NODE: prints the ticket once the layers are written, and stays until it is killed.
"""

import asyncio
import sys

from kvstore.blocks.namespace import Namespace
from kvstore.client import AsyncClient, buffers
from tests.cluster import random_blocks
from tests.e2e.test_handoff import LAYOUT, prompt


async def main(node: str) -> None:
    client = await AsyncClient.connect(node=node, namespace=Namespace.of("test", LAYOUT), layout=LAYOUT)
    ticket = await client.offer(prompt(2.5, seed=77))
    writer = await client.send(ticket, buffers.contiguous(random_blocks(LAYOUT, 3), LAYOUT))
    await writer.write_layers(0, LAYOUT.layers // 2)
    print(ticket, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
