"""A prefill and a decode node in processes of their own: store, match, load, hand over."""

import numpy as np
import pytest

from kvstore.client import buffers
from tests.cluster import LAYOUT, Cluster, random_blocks, whole_match
from tests.waiting import eventually

pytestmark = pytest.mark.ucx


async def test_blocks_travel_between_nodes(processes: Cluster) -> None:
    """What one engine stores another one, on another node, matches and loads, byte for byte."""
    control = await processes.control()
    prefill, decode = await processes.nodes("prefill", "decode", control=control.address)
    writer, reader = await processes.client(prefill), await processes.client(decode)
    tokens = np.arange(64 * 10 + 5, dtype=np.uint32)
    source, target = random_blocks(LAYOUT, 10), np.zeros((10, LAYOUT.block_bytes), np.uint8)

    stored = await writer.store(tokens, buffers.contiguous(source, LAYOUT))
    assert (stored.stored, stored.refused) == (10, 0)
    match = await eventually(lambda: whole_match(reader, tokens))
    result = await reader.load(match, buffers.contiguous(target, LAYOUT)).result()

    assert result.blocks == 10
    assert [(s.node_id, s.tier, s.route) for s in result.sources] == [("prefill", "dram", "peer")]
    assert np.array_equal(source, target)
    await processes.clean(prefill)
    await processes.clean(decode)
