"""A sender judges its reader by all that goes over the connection."""

import asyncio
import time
from collections.abc import AsyncIterator
from unittest.mock import AsyncMock, Mock

import numpy as np
import pytest

from kvstore.config import NodeConfig
from kvstore.node.lanes import Lane, TrafficClass
from kvstore.node.outgoing import Held, Outgoing
from kvstore.node.progress import Moves
from kvstore.pb import node_pb2


@pytest.mark.parametrize("others_move", [True, False])
async def test_what_waits_behind_others_bytes_is_late_and_its_reader_is_there(others_move: bool) -> None:
    """One of many transfers to a reader may see nothing of its own move for long; with nothing moving it is over."""
    peer, moves, told = Mock(), Moves(), asyncio.Event()
    send: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    peer.send.return_value = send

    async def fetch(block: int, offset: int, length: int) -> Held:
        return Held(np.zeros(length, np.uint8), lambda: None)

    config, lane = NodeConfig(progress_ms=60), Lane("lane", 1000)
    counters = {"pushed_bytes": 0, "push_failures": 0}
    outgoing = Outgoing(
        config, peer, moves, lane, TrafficClass.LOAD, fetch, time.monotonic_ns, counters, lambda message: told.set()
    )

    async def said() -> AsyncIterator[node_pb2.TransferUp]:
        yield node_pb2.TransferUp(credits=node_pb2.Credits(tags=[1], blocks=[0], offsets=[0], lengths=[8]))
        for _ in range(30):
            moves.count += others_move
            await asyncio.sleep(0.01)
            yield node_pb2.TransferUp()
        assert told.is_set() != others_move

    watch = asyncio.create_task(outgoing.watch())
    await outgoing.listen(said(), AsyncMock())
    assert told.is_set()  # the reader has ended the stream
    watch.cancel()
    send.set_result(None)
    await outgoing.settle()
