"""A cluster of two nodes and an operator at it, for tests of `kvstore admin`."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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


@asynccontextmanager
async def operator_of(folder: Path, capsys: pytest.CaptureFixture[str], **options: str) -> AsyncIterator[Operator]:
    """Nodes "a" and "b", with further options of both."""
    async with cluster(folder) as here:
        control = await here.control(heartbeat_ms="50")
        options = {"control": control.address, "dram_bytes": "64MiB", "slab_bytes": "4MiB", **options}
        nodes = [await here.node(name, **options) for name in ("a", "b")]
        operator = Operator(here, control, nodes, capsys)
        await operator.fill()
        yield operator
