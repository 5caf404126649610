"""Lines of real processes: one per load, with its attribution; and levels that operators change."""

import asyncio
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvstore.cli.main import main
from kvstore.client import AsyncClient, Match, buffers
from tests.cluster import LAYOUT, Cluster, random_blocks, whole_match
from tests.inprocess import tokens
from tests.waiting import eventually

DOCUMENT = (Path(__file__).parents[2] / "docs" / "logs.md").read_text()


class Lines:
    """What the processes have written by now."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def loads(self, process: str) -> list[dict[str, Any]]:
        whole, _, _ = self._file.read_text().rpartition("\n")
        lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"] == "load" and line["process"] == process]


@contextmanager
def written(file: Path) -> Iterator[Lines]:
    """What processes write that are started in here. Pytest's capture would lose what is written while it is read."""
    ours = os.dup(2)
    with open(file, "a") as theirs:
        os.dup2(theirs.fileno(), 2)
    try:
        yield Lines(file)
    finally:
        os.dup2(ours, 2)
        os.close(ours)


async def load(client: AsyncClient) -> None:
    match = await eventually(lambda: whole_match(client, tokens(2)))
    assert isinstance(match, Match)
    await client.load(match, buffers.contiguous(random_blocks(LAYOUT, 2), LAYOUT)).result()


async def test_one_line_per_load(processes: Cluster, tmp_path: Path) -> None:
    """A load from another node is one JSON object that says by which way its bytes came and how long it took, with the
    fields of docs/logs.md. A level that an operator changes holds at once: for one logger, and for all."""
    with written(tmp_path / "stderr") as lines:
        control = await processes.control(log_format="json")
        nodes = await processes.nodes("n0", "n1", control=control.address, log_format="json")
    writer, reader = [await processes.client(node) for node in nodes]
    await writer.store(tokens(2), buffers.contiguous(random_blocks(LAYOUT, 2), LAYOUT))

    await load(reader)
    (line,) = await eventually(lambda: lines.loads("node"))
    length = 2 * LAYOUT.block_bytes
    assert (line["number"], line["outcome"], line["blocks"], line["asked_blocks"]) == (1, "whole", 2, 2)
    assert (line["bytes"], line["tenant"], line["logger"]) == (length, "default", "kvstore.node.loads")
    assert 0 < line["plan_ms"] <= line["first_ms"] <= line["ms"]
    assert line["paths"] == [{"route": "peer", "tier": "dram", "node": "n0", "lane": "compute-in", "bytes": length}]
    told = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", DOCUMENT, re.MULTILINE))))
    assert line.keys() - {"time", "level", "process", "logger", "message"} == told - {"error", "retries"}

    def level(process: str, *more: str) -> "asyncio.Future[int]":
        argv = ["admin", "log-level", process, *more, "--control", control.address]
        return asyncio.ensure_future(asyncio.to_thread(main, argv))

    assert await level("n1", "warning", "--logger", "kvstore.node.loads") == 0
    await load(reader)
    assert await level("n1", "inherit", "--logger", "kvstore.node.loads") == 0
    await load(reader)
    await eventually(lambda: len(lines.loads("node")) > 1)
    assert [line["number"] for line in lines.loads("node")] == [1, 3]
    assert await level("control", "error") == 0
    assert await level("n1", "debug", "--logger", "kvstore.nothing") == 2
    assert await level("nobody", "debug") == 2
