"""`kvstore admin explain` on real nodes: each reason for which a prompt misses is told as what it is."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.blocks.namespace import Namespace
from kvstore.cli.main import main
from kvstore.client import AsyncClient, buffers
from kvstore.config import MIB
from kvstore.node.app import NodeServer
from kvstore.node.catalog import ShardId
from tests.cluster import LAYOUT, random_blocks
from tests.inprocess import LOOPBACK, SECOND_NS, Site, site, tokens
from tests.waiting import eventually

BLOCKS = 3
SOURCE = random_blocks(LAYOUT, BLOCKS)


@dataclass
class World:
    """A cluster, and what `explain` says of a prompt in it."""

    here: Site
    folder: Path
    capsys: pytest.CaptureFixture[str]
    control: str

    async def node(self, **options: Any) -> NodeServer:
        return await self.here.node(control=self.control, **options)

    async def store(self, node: NodeServer, **options: Any) -> AsyncClient:
        """BLOCKS blocks, by a client of the node; the control plane knows them then."""
        client = await self.here.client(node, **options)
        assert (await client.store(tokens(BLOCKS), buffers.contiguous(SOURCE.copy(), LAYOUT))).stored == BLOCKS
        await self.published(client, BLOCKS)
        return client

    async def published(self, client: AsyncClient, blocks: int) -> None:
        """The control plane answers a match of the prompt with so many blocks."""

        async def told() -> bool:
            return (await client._match_control(client.chain(tokens(BLOCKS)))).blocks == blocks

        await eventually(told)

    async def admin(self, *words: str) -> str:
        self.capsys.readouterr()
        assert await asyncio.to_thread(main, ["admin", *words, "--control", self.control]) == 0
        return self.capsys.readouterr().out

    async def explain(self, *options: str) -> dict[str, Any]:
        """Of the prompt, in the namespace that its clients have."""
        layout = {"block_tokens": LAYOUT.block_tokens, "groups": [asdict(LAYOUT.group)]}
        (self.folder / "namespace.json").write_text(json.dumps({"model": "test", "layout": layout}))
        (self.folder / "tokens.json").write_text(json.dumps(tokens(BLOCKS).tolist()))
        files = [str(self.folder / "tokens.json"), "--namespace-json", str(self.folder / "namespace.json")]
        said: dict[str, Any] = json.loads(await self.admin("explain", *files, "--json", *options))
        return said

    async def verdicts(self) -> list[str]:
        return [block["verdict"] for block in (await self.explain())["blocks"]]


@pytest.fixture
async def world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[World]:
    async with site(tmp_path) as here:
        control = await here.control(heartbeat_ms=20, node_lost_ms=300)
        yield World(here, tmp_path, capsys, control.address)


async def test_it_is_there(world: World) -> None:
    """As JSON, as a table in which what is alike is one row, and by a key alone."""
    node = await world.node()
    client = await world.store(node)
    said = await world.explain()
    assert (said["matched_blocks"], [block["verdict"] for block in said["blocks"]]) == (3, ["here"] * 3)
    keys = client.chain(tokens(BLOCKS)).keys
    table = await world.admin("explain", *(key.hex() for key in keys))
    for words in ("0 – 2", keys[0].hex(), "on n0 (DRAM)", "3 of 3 blocks match"):
        assert words in table


async def test_it_was_never_stored(world: World) -> None:
    """No node knows anything of it."""
    await world.node()
    assert await world.verdicts() == ["never_stored"] * BLOCKS


async def test_it_has_expired(world: World) -> None:
    """Where and how long ago is told."""
    node = await world.node(tick_ms=20)
    client = await world.store(node, ttl_s=1)
    await eventually(lambda: node.catalog.block_count == 0)
    await world.published(client, 0)
    said = (await world.explain())["blocks"][0]
    assert said["verdict"] == "expired"
    assert said["text"].endswith("s ago on n0")


async def test_it_was_evicted(world: World) -> None:
    """Its room was needed; a part that is behind it is gone as well."""
    node = await world.node(dram_bytes=MIB)
    client = await world.store(node)
    for seed in range(1, 4):
        await client.store(tokens(BLOCKS, seed), buffers.contiguous(SOURCE.copy(), LAYOUT))
    await world.published(client, 0)
    assert await world.verdicts() == ["evicted"] * BLOCKS


async def test_its_namespace_differs(world: World) -> None:
    """It was stored under another revision of the weights, and that is what is told."""
    node = await world.node()
    other = Namespace.of("test", LAYOUT, weights_revision="r2")
    client = await world.store(node, namespace=other)
    assert client.namespace.id == other.id
    said = (await world.explain())["blocks"][0]
    assert said["verdict"] == "other_namespace"
    assert (
        said["text"] == "3 blocks of the prompt are stored in another namespace: weights_revision: 'r2' there, '' asked"
    )


async def test_its_store_got_no_lease(world: World) -> None:
    """All room is held by an unfinished put."""
    node = await world.node(dram_bytes=MIB)
    client = await world.here.client(node)
    big = client.chain(tokens(8, seed=1))
    node.catalog.reserve(big.namespace_id, ShardId(0, 1), big.keys, 0, "session:x", node.custody.clock())
    result = await client.store(tokens(BLOCKS), buffers.contiguous(SOURCE.copy(), LAYOUT))
    assert result.refused == BLOCKS
    assert await world.verdicts() == ["lease_refused"] * BLOCKS


async def test_its_node_is_down(world: World) -> None:
    """Only the one that does not answer has it."""
    await world.node()
    owner = await world.node()
    client = await world.store(owner)
    await client.close()
    await owner.stop()
    await eventually(lambda: _down(world))
    said = (await world.explain())["blocks"][0]
    assert said["verdict"] == "node_down"
    assert "n1" in said["text"]


async def _down(world: World) -> bool:
    nodes = json.loads(await world.admin("nodes", "--json"))["nodes"]
    return not all(node["alive"] for node in nodes)


async def test_it_was_corrupt(world: World) -> None:
    """A reader found other bytes than were stored, and the owner dropped it; what hangs on it is behind a gap."""
    node = await world.node()
    client = await world.store(node)
    chain = client.chain(tokens(BLOCKS))
    wanted = [i == 1 for i in range(BLOCKS)]
    pins = node.catalog.pin(chain.namespace_id, ShardId(0, 1), chain.keys, wanted, "node:test", 0, SECOND_NS)
    assert pins.blocks[0] is not None
    node.custody.view(pins.blocks[0].place, 0, 1)[0] ^= 1
    node.catalog.unpin(pins.pin_id)
    target = buffers.contiguous(np.zeros_like(SOURCE), LAYOUT)
    assert (await client.load(await client.match(tokens(BLOCKS)), target).result()).blocks == 1
    await world.published(client, 1)
    assert await world.verdicts() == ["here", "corrupt", "behind_gap"]


async def test_it_was_not_worth_loading(world: World) -> None:
    """It is there, behind a slow NIC, and a fast engine computed it instead."""
    far = await world.node(compute=replace(LOOPBACK, bytes_per_s=10**6))
    near = await world.node()
    await world.store(far)
    client = await world.here.client(near)

    async def declined() -> bool:
        match = await client.match(tokens(BLOCKS), prefill=20_000.0)
        return (
            match.blocks == BLOCKS
            and match.worth_blocks == 0
            and near.catalog.usage().counters.get("declined_blocks", 0) > 0
        )

    await eventually(declined)
    said = (await world.explain())["blocks"][0]
    assert said["verdict"] == "not_worth_loading"
    assert "a client of n1 found it sooner computed than loaded" in said["text"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain", "tokens.json"], "needs --namespace-json"),
        (["explain", "00" * 16, "00" * 16, "--namespace-json", "x"], "one file of tokens"),
    ],
)
async def test_what_cannot_be_asked(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Is refused before anybody is asked."""
    assert await asyncio.to_thread(main, ["admin", *words, "--control", "127.0.0.1:1"]) == 2
    assert message in capsys.readouterr().err
