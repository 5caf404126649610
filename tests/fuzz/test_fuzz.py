"""Inputs of any kind, by the ten thousand: nothing crashes, hangs, leaks, or answers who has no rights.

All inputs follow from seeds, and a failure names its own. `scripts/fuzz --inputs N` goes on for longer.
"""

import asyncio
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.blocks.namespace import Namespace
from kvstore.client import AsyncClient, buffers
from kvstore.errors import KVStoreError
from kvstore.node.app import NodeServer
from kvstore.pb import node_pb2, node_pb2_grpc
from kvstore.rpc.certificates import Role
from kvstore.rpc.channel import caller, open_channel
from tests.certs import Certs
from tests.cluster import LAYOUT, open_descriptors, random_blocks
from tests.fuzz.calls import DEADLINE_S, METHODS, is_refusal, known_to, made_from, send
from tests.fuzz.inputs import Inputs
from tests.fuzz.parsers import parsers, refuses_or_reads
from tests.inprocess import Site, at_rest, site, tokens
from tests.node.storage.damage import fill, served
from tests.waiting import eventually

INPUTS = int(os.environ.get("KVSTORE_FUZZ_INPUTS", "50000"))
SECONDS = float(os.environ.get("KVSTORE_FUZZ_SECONDS", "45"))
FIRST_SEED = int(os.environ.get("KVSTORE_FUZZ_SEED", "0"))
AT_ONCE = 24
SHORT = {"hold_ms_max": 200, "lease_ms": 200, "connect_ms": 100, "progress_ms": 100, "tick_ms": 20}
_SHARES = {"parsers": 0.6, "files": 0.002, "control": 0.12, "admin": 0.07, "node": 0.15, "strangers": 0.058}
pytestmark = pytest.mark.timeout(SECONDS + 120)


class Part:
    """A share of all inputs, within a share of the time."""

    def __init__(self, name: str, ways: int = 1) -> None:
        self.count = max(1, int(INPUTS * _SHARES[name] / ways))
        self._until_s = time.monotonic() + SECONDS / (len(_SHARES) * ways)
        self.done = 0

    def seeds(self) -> "list[int]":
        """The next few; none when the share is used up."""
        if time.monotonic() > self._until_s:
            return []
        first, self.done = self.done, min(self.count, self.done + AT_ONCE)
        return [FIRST_SEED + seed for seed in range(first, self.done)]


class Complaints(logging.Handler):
    """Collects what a server logs of its own failures, and what the event loop finds in tasks that nobody awaits."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.said.append(self.format(record))


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> Iterator[Complaints]:
    """Fails the test that uses it where there were any. Levels that were changed over the wire are set back."""
    handler, watched = Complaints(), [logging.getLogger(name) for name in ("kvstore", "asyncio", "grpc")]
    levels = [logger.level for logger in watched]
    for logger in watched:
        logger.addHandler(handler)
        monkeypatch.setattr(logger, "propagate", False)
    yield handler
    for logger, level in zip(watched, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert handler.said == []


async def test_calls_to_a_node(tmp_path: Path, complaints: Complaints) -> None:
    """By a client that has blocks there, and by others. Afterwards the node holds nothing, and serves."""
    async with site(tmp_path) as here:
        control = await here.control(heartbeat_ms=50)
        node = await here.node(node_id="n0", control=control.address, **SHORT)
        client = await stored(here, node)
        before = Held()
        await fuzzed(node.socket, "Node", Part("node"), client)
        await rest(before, node, client)
        async with open_channel(node.socket) as channel:  # a call among them may have begun to empty it
            ended = node_pb2.DrainRequest(caller=caller("test"), action=node_pb2.DRAIN_ACTION_END)
            await node_pb2_grpc.NodeStub(channel).Drain(ended, timeout=DEADLINE_S)
        await stored(here, node, "of which no rule was set")


async def test_calls_to_a_control_plane(tmp_path: Path, complaints: Complaints) -> None:
    """By nodes and clients. Afterwards it still answers."""
    async with site(tmp_path) as here:
        control = await here.control(heartbeat_ms=50)
        node = await here.node(node_id="n0", **SHORT)
        client = await stored(here, node)
        before = Held()
        await fuzzed(control.address, "Control", Part("control"), client)
        await rest(before, node, client)


async def test_calls_of_operators(tmp_path: Path, complaints: Complaints) -> None:
    """With a node that lives and one that does not."""
    async with site(tmp_path) as here:
        control = await here.control(heartbeat_ms=50)
        node = await here.node(node_id="n0", control=control.address, **SHORT)
        client = await stored(here, node)
        before = Held()
        await fuzzed(control.address, "Admin", Part("admin"), client)
        await rest(before, node, client)


async def test_nobody_without_rights_is_answered(tmp_path: Path, complaints: Complaints) -> None:
    """Behind a shut door, with a client's certificate and no token: every call is refused, whatever it says."""
    certs = Certs(tmp_path / "certs")
    certs.holder("acme", tenant="acme")
    async with site(tmp_path) as here:
        control = await here.control(certs.server("control"))
        node = await here.node(door=certs.server("node"), control=control.address)
        door, part = certs.door("client"), Part("strangers")
        async with (
            open_channel(control.address, door=door, serves=Role.CONTROL) as far,
            open_channel(node.address, door=door) as near,
        ):
            while seeds := part.seeds():
                rpcs = [list(METHODS)[seed % len(METHODS)] for seed in seeds]
                answers = await asyncio.gather(
                    *(
                        send(near if rpc.startswith("Node/") else far, rpc, made_from(seed, rpc, None), DEADLINE_S)
                        for seed, rpc in zip(seeds, rpcs, strict=True)
                    )
                )
                told = {rpc: answer for rpc, answer in zip(rpcs, answers, strict=True) if not is_refusal(answer)}
                assert told == {}
        print(f"strangers: {part.done} inputs, all refused")


@pytest.mark.parametrize("number", range(19))
def test_bytes_and_texts(tmp_path: Path, number: int) -> None:
    """Of files, tokens, tickets: read, or refused with an error that has a name."""
    everyone = parsers(tmp_path)
    parser, part = everyone[number], Part("parsers", len(everyone))
    assert refuses_or_reads(parser, parser.good)
    while seeds := part.seeds():
        for seed in seeds:
            inputs = Inputs(seed)
            raw = inputs.mutated(parser.good) if seed % 10 else inputs.random.randbytes(inputs.random.randrange(300))
            try:
                refuses_or_reads(parser, raw)
            except Exception as error:
                raise AssertionError(f"{parser.name}, seed {seed}: {raw!r}") from error
    print(f"{parser.name}: {part.done} inputs")


def test_files_of_a_device(tmp_path: Path) -> None:
    """One of them changed in any way: what is found is what was stored, or the device says why it does not open."""
    whole, work, part = tmp_path / "whole", tmp_path / "work", Part("files")
    fill(whole)
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    # LMDB trusts its file: what a damaged one does to a process is tested with processes of their own.
    names = [name for name in names if name.suffix not in (".mdb", ".lock")]
    while seeds := part.seeds():
        for seed in seeds:
            inputs = Inputs(seed)
            name = inputs.random.choice(names)
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(whole, work)
            (work / name).write_bytes(inputs.mutated((whole / name).read_bytes(), most=3))
            try:
                served(work)
            except KVStoreError:
                continue
            except Exception as error:
                raise AssertionError(f"{name}, seed {seed}") from error
    print(f"files of a device: {part.done} inputs")


class Held:
    """What the process holds now; compared with what it holds later."""

    def __init__(self) -> None:
        self.descriptors = open_descriptors(os.getpid())
        self.tasks = len(asyncio.all_tasks())


async def rest(before: Held, node: NodeServer, client: AsyncClient) -> None:
    """Waits until nothing is left of the calls: no pin, lease or handoff, no session, no task, no
    descriptor (some connections stay open for a while)."""
    await client.close()
    await eventually(lambda: not len(node.sessions), deadline_s=10)
    await at_rest(node)
    await eventually(lambda: len(asyncio.all_tasks()) <= before.tasks + 8, deadline_s=10)
    await eventually(lambda: open_descriptors(os.getpid()) <= before.descriptors + 40, deadline_s=10)


async def stored(here: Site, node: NodeServer, model: str = "test") -> AsyncClient:
    """A client that has stored a prompt."""
    client = await here.client(node, namespace=Namespace.of(model, LAYOUT))
    done = await client.store(tokens(8), buffers.contiguous(random_blocks(LAYOUT, 8), LAYOUT))
    assert done.stored + done.present == 8
    return client


async def fuzzed(address: str, service: str, part: Part, client: AsyncClient) -> Counter[str]:
    """Sends the part's inputs to a service, many at once; how often each answer came."""
    rpcs = [rpc for rpc in METHODS if rpc.startswith(f"{service}/")]
    known, answers = known_to(client), Counter[str]()
    async with open_channel(address) as channel:
        while seeds := part.seeds():
            sent = [(rpcs[seed % len(rpcs)], seed) for seed in seeds]
            try:
                answers.update(
                    await asyncio.gather(*(send(channel, rpc, made_from(seed, rpc, known)) for rpc, seed in sent))
                )
            except BaseException as error:
                raise AssertionError(f"{service}, seeds {seeds[0]} to {seeds[-1]}") from error
    print(f"{service}: {part.done} inputs, {dict(answers)}")
    return answers
