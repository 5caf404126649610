"""A cluster of two nodes and an operator at it, for tests of `kvstore admin`."""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.cli import admin
from kvstore.cli.main import main
from kvstore.client import AsyncClient, Match, buffers
from tests.cluster import LAYOUT, Cluster, Running, cluster, random_blocks, whole_match
from tests.inprocess import tokens
from tests.waiting import eventually

BLOCKS = 4
SOURCE = random_blocks(LAYOUT, BLOCKS)
TESTED: set[str] = set()
"""Verbs of `kvstore admin` that a test with `runs` is about."""


class Operator:
    """A cluster of two nodes, "a" and "b", of which the first holds a prompt that a client of the second has loaded.

    ran: verbs that ended well in this test, as a table ("") and as JSON ("--json")."""

    def __init__(self, here: Cluster, control: Running, nodes: list[Running]) -> None:
        self.here = here
        self.control = control
        self.nodes = nodes
        self.ran: set[tuple[str, str]] = set()
        self.capsys: pytest.CaptureFixture[str]
        self.writer: AsyncClient
        self.reader: AsyncClient

    def begin(self, capsys: pytest.CaptureFixture[str]) -> "Operator":
        """For the next test."""
        self.capsys = capsys
        self.ran = set()
        return self

    async def fill(self) -> None:
        self.writer, self.reader = [await self.here.client(node) for node in self.nodes]
        await self.store()
        await self.load()

    async def store(self) -> None:
        await self.writer.store(tokens(BLOCKS), buffers.contiguous(SOURCE.copy(), LAYOUT))

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
        if code == 0:
            self._note(*words)
        return self.capsys.readouterr().out

    async def json(self, *words: str, code: int = 0) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(await self.run(*words, "--json", code=code))
        return said

    async def line(self, *words: str) -> str:
        """The first line of a verb that goes on until Ctrl-C, which it then gets."""
        argv = [sys.executable, "-m", "kvstore", "admin", *words, "--control", self.control.address]
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(20):
                line = (await process.stdout.readline()).decode()
                process.send_signal(signal.SIGINT)
                assert await process.wait() == 130
        finally:
            if process.returncode is None:
                process.kill()
        self._note(*words)
        return line

    def _note(self, *words: str) -> None:
        verb = " ".join(words[:2]) if " ".join(words[:2]) in verbs() else words[0]
        self.ran.add((verb, "--json" if "--json" in words else ""))

    def prompt(self, seed: int = 0) -> list[str]:
        """Files of the prompt's tokens and namespace, as verbs take them."""
        layout = {"block_tokens": LAYOUT.block_tokens, "groups": [asdict(LAYOUT.group)]}
        named, listed = self.here.folder / "namespace.json", self.here.folder / "tokens.json"
        named.write_text(json.dumps({"model": "test", "layout": layout}))
        listed.write_text(json.dumps(tokens(BLOCKS, seed).tolist()))
        return [str(listed), "--namespace-json", str(named)]


def verbs() -> set[str]:
    """All that `kvstore admin` has, as its help lists them; of those that have verbs themselves, these."""
    parser = argparse.ArgumentParser()
    admin.add_arguments(parser)
    return set(_leaves(parser, ()))


def _leaves(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[str]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield " ".join(words)
    for action in below:
        for name, each in action.choices.items():
            yield from _leaves(each, (*words, name))


Test = Callable[[Operator], Awaitable[None]]


def runs(*tested: str) -> Callable[[Test], Test]:
    """A test of these verbs: it must have run each, and seen its table and its JSON."""
    TESTED.update(tested)

    def decorate(test: Test) -> Test:
        @wraps(test)
        async def whole(**fixture: Operator) -> None:
            (operator,) = fixture.values()
            await test(operator)
            left = {(verb, form) for verb in tested for form in ("", "--json")} - operator.ran
            assert not left, f"never ran: {sorted(left)}"

        marked: Test = pytest.mark.asyncio(loop_scope="module")(whole)
        return marked

    return decorate


@asynccontextmanager
async def operator_of(folder: Path) -> AsyncIterator[Operator]:
    """Each node has a device of its own, in a directory that both could mount."""
    async with cluster(folder) as here:
        control = await here.control(heartbeat_ms="50", node_lost_ms="1000")
        options = {"dram_bytes": "64MiB", "slab_bytes": "4MiB", "nvme_bytes": "17MiB", "nvme_slab_bytes": "4MiB"}
        options |= {"nvme_free_bytes_min": "0", "control": control.address}
        starting = (
            here.node(name, flags=("--nvme-shared",), nvme_paths=str(folder / name), **options) for name in ("a", "b")
        )
        operator = Operator(here, control, await asyncio.gather(*starting))
        await operator.fill()
        yield operator
