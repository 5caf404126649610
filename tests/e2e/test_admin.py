"""Every verb of `kvstore admin` against a real two-node cluster, as tables and as JSON."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.cli.main import main
from kvstore.client import AsyncClient, Match, buffers
from tests.cluster import LAYOUT, Cluster, Running, cluster, random_blocks, whole_match
from tests.inprocess import tokens
from tests.waiting import eventually

BLOCKS = 4
SOURCE = random_blocks(LAYOUT, BLOCKS)


class Operator:
    """A cluster of two nodes, of which the first holds a prompt that a client of the second has loaded."""

    def __init__(
        self, here: Cluster, control: Running, nodes: list[Running], capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.here = here
        self.control = control
        self.nodes = nodes
        self.capsys = capsys
        self.writer: AsyncClient
        self.reader: AsyncClient

    async def fill(self) -> None:
        self.writer, self.reader = [await self.here.client(node) for node in self.nodes]
        await self.writer.store(tokens(BLOCKS), buffers.contiguous(SOURCE.copy(), LAYOUT))
        await self.load()

    async def load(self) -> None:
        match: Match = await eventually(lambda: whole_match(self.reader, tokens(BLOCKS)))
        target = np.zeros_like(SOURCE)
        await self.reader.load(match, buffers.contiguous(target, LAYOUT)).result()
        assert np.array_equal(target, SOURCE)

    async def run(self, *words: str, code: int = 0) -> str:
        """The verb's table."""
        self.capsys.readouterr()
        argv = ["admin", *words, "--control", self.control.address]
        assert await asyncio.to_thread(main, argv) == code, self.capsys.readouterr()
        return self.capsys.readouterr().out

    async def json(self, *words: str, code: int = 0) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(await self.run(*words, "--json", code=code))
        return said

    def prompt(self, seed: int = 0) -> list[str]:
        """Files of the prompt's tokens and namespace, as verbs take them."""
        layout = {"block_tokens": LAYOUT.block_tokens, "groups": [asdict(LAYOUT.group)]}
        named, listed = self.here.folder / "namespace.json", self.here.folder / "tokens.json"
        named.write_text(json.dumps({"model": "test", "layout": layout}))
        listed.write_text(json.dumps(tokens(BLOCKS, seed).tolist()))
        return [str(listed), "--namespace-json", str(named)]


@pytest.fixture
async def operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Operator]:
    async with cluster(tmp_path) as here:
        control = await here.control(heartbeat_ms="50")
        options = {"control": control.address, "dram_bytes": "64MiB", "slab_bytes": "4MiB"}
        nodes = [await here.node(name, **options) for name in ("a", "b")]
        operator = Operator(here, control, nodes, capsys)
        await operator.fill()
        yield operator


async def test_what_there_is(operator: Operator) -> None:
    """stats, loads, nodes, lanes, devices, blocks, explain, check, ttl: what was stored and loaded is in each."""
    stats = await operator.json("stats")
    by_name = {node["node_id"]: node["usage"] for node in stats["nodes"]}
    (held,) = by_name["a"]["namespaces"]
    assert (held["model"], held["tiers"][0]["blocks"]) == ("test", str(BLOCKS))
    (way,) = by_name["b"]["routes"]
    assert (way["route"], way["tier"], way["bytes"]) == ("peer", "TIER_DRAM", str(SOURCE.nbytes))
    assert way["last_1min_bytes"] == way["bytes"]
    assert sum(map(int, by_name["a"]["ttl"]["counts"])) == BLOCKS
    (asked,) = stats["namespaces"]
    assert int(asked["matched_blocks"]) == int(stats["matched_1min_blocks"]) >= BLOCKS
    table = await operator.run("stats")
    for words in ("hit ratio", "namespaces", "tenants", "default", "peer", "time that is left"):
        assert words in table

    (load,) = (await operator.json("loads", "--all"))["nodes"][1]["usage"]["loads"]
    assert (load["ended"], load["arrived_bytes"], load["bytes"]) == (True, str(SOURCE.nbytes), str(SOURCE.nbytes))
    assert "peer from a (DRAM)" in await operator.run("loads", "--all")
    assert not (await operator.json("loads"))["nodes"][1]["usage"]["loads"]

    assert [node["alive"] for node in (await operator.json("nodes"))["nodes"]] == [True, True]
    assert "alive" in await operator.run("nodes")
    assert "compute-in" in await operator.run("lanes")
    assert "devices" in await operator.run("devices")
    blocks, named = operator.prompt()[0], operator.prompt()[1:]
    assert "DRAM" in await operator.run("blocks", "--tokens", blocks, *named)
    explained = await operator.json("explain", *operator.prompt())
    assert [block["verdict"] for block in explained["blocks"]] == ["here"] * BLOCKS
    assert "2 of 2 nodes" in await operator.run("check")
    assert "sliding" in await operator.run("ttl", "get")
