"""Clients that die or stand still: their node gives back what they held, and nobody gets wrong bytes."""

import asyncio
import signal
import time
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kvstore.client import AsyncClient
from kvstore.pb import node_pb2
from tests.cluster import LAYOUT, Cluster, Running, open_descriptors, random_blocks, threads
from tests.faults import scenes
from tests.faults.clients import (
    SHORT_MS,
    SLOTS,
    Pair,
    counters,
    into,
    reads_back,
    serves,
    with_sessions,
)
from tests.faults.engine import Bytes, prompt
from tests.faults.engines import engine
from tests.waiting import eventually

pytestmark = [pytest.mark.ucx, pytest.mark.asyncio(loop_scope="session")]


# ---- killed ------------------------------------------------------------------------------------------------------


async def test_killed_clients_leave_nothing(built: Cluster, pair: Pair) -> None:
    """Clients killed with pins, leases, half-written slots, a handoff and a running load: all of it is free within a
    second, the others keep theirs, and over five rounds the node has lost no descriptor and no thread.

    A pool of bounded size may make another thread in some rounds; a leak would add to each.
    """
    node = pair.prefill
    async with AsyncExitStack() as stack:
        descriptors, counts = 0, list[int]()
        attached = (await counters(built, node))["sessions"]
        starting = [engine("hold", node.socket, seed=1000 + 10 * i) for i in range(5)]
        engines = [await stack.enter_async_context(starting_one) for starting_one in starting]
        for held in engines:
            assert (await held.reaches("holds"))["blocks"] == 4
        for left in range(len(engines) - 1, -1, -1):
            victim = engines[left]
            assert not maps_shared_names(victim.pid)
            killed_s = time.monotonic()
            await victim.kill()
            usage = await eventually(lambda left=left: with_sessions(built, node, attached + left), 1.0)
            assert time.monotonic() - killed_s < 1
            tier = usage.tiers[0]
            # Each holds: a match, a pin and a load of 4 blocks; a put of 3 slots; a handoff of 3 slots and its pins.
            assert (tier.leases, tier.reserved_slots, tier.pins) == (2 * left, 6 * left, 15 * left)
            assert usage.counters["handoffs"] == left
            if not counts:  # the first round warmed everything up
                descriptors = open_descriptors(node.pid) + left
            counts.append(threads(node.pid))
    usage = await built.clean(node)
    assert usage.counters["sessions"] == attached
    assert not maps_shared_names(node.pid)
    await serves(pair.writer, 1900)
    assert any(later <= earlier for earlier, later in pairwise(counts)), counts
    await eventually(lambda: open_descriptors(node.pid) <= descriptors)


def maps_shared_names(pid: int) -> bool:
    """Whether the process uses shared memory that has a name, which would stay behind when it is killed."""
    return "/dev/shm/" in Path(f"/proc/{pid}/maps").read_text()


async def test_killed_before_it_bound(built: Cluster, pair: Pair) -> None:
    """A process that dies between attaching and coming for its slabs has no connection that breaks: its pidfd tells."""
    link = pair.writer._link
    before = (await counters(built, pair.prefill))["sessions"]
    process = await asyncio.create_subprocess_exec("sleep", "60")
    request = node_pb2.AttachRequest(caller=link.caller, pid=process.pid, tenant="default")
    session_id = (await link.call(link.stub.Attach, request)).session_id
    keys = link.namespace.id, pair.writer.chain(prompt(2, 1950)).packed
    reserving = node_pb2.ReserveRequest(
        caller=link.caller, session_id=session_id, namespace_id=keys[0], shard_count=1, keys=keys[1]
    )
    await link.call(link.stub.Reserve, reserving)
    usage = await with_sessions(built, pair.prefill, before + 1)
    assert usage is not None
    assert usage.tiers[0].reserved_slots == 2
    process.kill()
    await process.wait()
    await eventually(lambda: with_sessions(built, pair.prefill, before), 1.0)
    await built.clean(pair.prefill, 1.0)


# ---- stopped, then continued -------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 3], ids=["first block", "third block"])
async def test_stopped_while_writing(built: Cluster, strict: Running, at: int) -> None:
    """A writer that stands still past its lease loses it; its slots are given to nobody until it answers, though it
    goes on writing to them."""
    client = await built.client(strict)
    lapsed = (await counters(built, strict))["leases_lapsed"]
    async with engine("write", strict.socket, blocks=8, seed=2000 + at, at=at) as victim:
        assert (await victim.reaches("leased"))["blocks"] == 8
        await victim.stops()
        await eventually(lambda: counter_above(built, strict, "leases_lapsed", lapsed))
        tokens, source = prompt(SLOTS, 2100 + at), random_blocks(LAYOUT, SLOTS, at)
        stored = await client.store(tokens, into(source))
        assert (stored.stored, stored.refused) == (8, 8), "the writer's slots were given away"
        assert stored.retry_after_s > 0
        victim.signal(signal.SIGCONT)
        assert (await victim.reaches("over"))["answer"] == "LeaseLost"
        await reads_back(client, tokens[: 8 * 64], source[:8])
        await built.clean(strict)  # the writer lives, and has answered
        stored = await client.store(tokens, into(source))
        assert (stored.present, stored.stored) == (8, 8)
        await reads_back(client, tokens, source)
        assert (await client.match(prompt(8, 2000 + at))).blocks == 0
    await client.close()


async def counter_above(built: Cluster, node: Running, name: str, bound: int) -> bool:
    return bool((await counters(built, node))[name] > bound)


@pytest.mark.parametrize("verify", ["yes", "no"])
async def test_stopped_while_reading(built: Cluster, strict: Running, verify: str) -> None:
    """A reader that stands still past its hold is revoked when its room is needed. It finds out: blocks that are not
    there any more are STALE, and never reported as ready."""
    client = await built.client(strict)
    seed = 3000 + (verify == "yes")
    tokens, source = prompt(8, seed), random_blocks(LAYOUT, 8, seed)
    assert (await client.store(tokens, into(source))).stored == 8
    options = {"match": (await client.match(tokens)).to_json(), "blocks": 8, "seed": seed, "at": 3, "deadline_s": 20}
    async with engine("read", strict.socket, verify=verify, **options) as victim:
        await victim.stops()
        revoked = (await counters(built, strict))["revoked_pins"]
        others = prompt(SLOTS, seed + 100), random_blocks(LAYOUT, SLOTS, seed + 100)
        await eventually(lambda: stores_all(client, *others))
        assert (await counters(built, strict))["revoked_pins"] == revoked + 1
        victim.signal(signal.SIGCONT)
        said = await victim.reaches("over")
        assert (said["answer"], said["ready"], said["groups"]) == ("STALE", 2, 0), said
        assert all(said["right"][: said["ready"]])
        assert not any(said["right"][2:])
        await reads_back(client, *others)
        await built.clean(strict)
    await client.close()


async def stores_all(client: AsyncClient, tokens: Any, source: Bytes) -> bool:
    stored = await client.store(tokens, into(source))
    return stored.stored + stored.present == len(source)


async def test_stopped_while_reading_without_pressure(built: Cluster, strict: Running) -> None:
    """A hold that is overdue but in nobody's way stays: the reader goes on and has everything."""
    client = await built.client(strict)
    tokens, source = prompt(8, 3200), random_blocks(LAYOUT, 8, 3200)
    assert (await client.store(tokens, into(source))).stored == 8
    options = {"match": (await client.match(tokens)).to_json(), "blocks": 8, "seed": 3200, "at": 3, "deadline_s": 20}
    async with engine("read", strict.socket, **options) as victim:
        await victim.stops()
        began_s = time.monotonic()
        await eventually(lambda: time.monotonic() > began_s + 2 * SHORT_MS / 1000)
        victim.signal(signal.SIGCONT)
        said = await victim.reaches("over")
        assert (said["answer"], said["ready"], all(said["right"])) == ("READY", 8, True)
        await built.clean(strict)
    await client.close()


@pytest.mark.parametrize("verify", ["yes", "no"])
async def test_stopped_while_reading_landing_places(built: Cluster, pair: Pair, verify: str) -> None:
    """A load's deadline passes while its client stands still over a landing place: the node gives the places to others,
    and the client, going on, has what it had copied before and is told that the rest is stale, or that it is late."""
    seed = 3300 + (verify == "yes")
    stored = await scenes.store(pair.writer, 6, seed=seed)
    options = {"match": stored.match.to_json(), "blocks": 6, "seed": seed, "at": 2, "deadline_s": 0.5}
    async with engine("read", pair.decode.socket, verify=verify, **options) as victim:
        await victim.stops()
        await built.clean(pair.decode)  # its client stands still, and keeps nothing
        others = prompt(64, seed + 100), random_blocks(LAYOUT, 64, seed + 100)
        assert (await pair.reader.store(others[0], into(others[1]))).stored == 64, "the tier is not all theirs"
        victim.signal(signal.SIGCONT)
        said = await victim.reaches("over")
        assert (said["answer"], said["ready"]) in {("DeadlineExceeded", 0), ("STALE", 1)}
        assert said["groups"] == 0
        assert all(said["right"][: said["ready"]])
        assert not said["right"][1], "the place was not overwritten, so the test shows nothing"
        await reads_back(pair.reader, *others)
    await pair.clean()
