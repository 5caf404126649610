"""Longest-prefix matches against a large index, as an engine's client sees them.

Control plane and node run in processes of their own. The index is filled through Publish, with chains of random keys as
long as the prompt; then the client library matches whole chains, one after the other, drawn at random. At the end the
parts of a match are timed alone, in this process, on the same index.

Memory is what the control plane's process has gained by the index: `private` is its own, the rest are pages of the
index's file, which the kernel takes back when it needs them. Disk is what the file occupies.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kvbench import noise, options, progress, result
from kvbench.memory import on_disk, resident
from kvbench.result import Result
from kvstore.blocks.keys import KEY_BYTES, Chain, unpack_keys
from kvstore.blocks.layout import BLOCK_TOKENS, Layout
from kvstore.blocks.namespace import Namespace
from kvstore.blocks.state import Tier
from kvstore.cli.options import size
from kvstore.cli.spawn import running, server
from kvstore.client import AsyncClient
from kvstore.client.matching import Locations
from kvstore.control.directory import NodeState
from kvstore.control.index.lmdb import LmdbIndex
from kvstore.control.prefix import Answer, answer
from kvstore.control.wire import match_reply
from kvstore.errors import KVStoreError
from kvstore.pb import control_pb2, control_pb2_grpc, types_pb2
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX, caller, open_channel

_LAYOUT = Layout.dense(layers=2, kv_heads=1, head_dim=64)
_NAMESPACE = Namespace.of("match-bench", _LAYOUT)
_HOUR_MS = 60 * 60 * 1000
_QUIET = ("--log-level", "warning")
_CALL_S = 60.0
_INDEX_BYTES_MAX = 16 * 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--blocks", type=size, default="1M", metavar="N", help="blocks in the index, as 10M (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens of a prompt (default: %(default)s)")
    options.add_rounds(parser, 300, "matches measured")
    options.add_warm_up(parser, 50)
    parser.add_argument(
        "--listen", default="127.0.0.1:0", help="where the control plane listens, on this host (default: %(default)s)"
    )
    options.add_seed(parser)


def run(args: argparse.Namespace) -> Result:
    if min(args.blocks, args.rounds) < 1 or args.tokens < BLOCK_TOKENS:
        raise KVStoreError(f"at least one block, one round and {BLOCK_TOKENS} tokens are needed")
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> Result:
    rng = np.random.default_rng(args.seed)
    chains = _chains(args.blocks, args.tokens, rng)
    draw = [_chain(chains[i], args.tokens) for i in rng.integers(0, len(chains), args.warm_up + args.rounds)]
    with tempfile.TemporaryDirectory(prefix="kvbench-match-") as folder:
        index = f"{folder}/index"
        control_options = ("--listen", args.listen, "--index-path", index, "--node-lost-ms", str(_HOUR_MS))
        async with running("control", *control_options, *_QUIET) as started:
            control = started.said
            empty = resident(started.process.pid)
            fill_s = await _fill(control["address"], chains)
            node_options = ("--control", control["address"], "--dram-bytes", str(128 * 2**20))
            async with server("node", *node_options, *_QUIET) as node:
                total_ms = await _client_ms(node["socket"], draw, args.warm_up)
            floor_ms = await _heartbeat_ms(control["address"], args.rounds, args.warm_up)
            full = resident(started.process.pid)
        disk_bytes = on_disk(Path(index))
        parts_ms = await _parts_ms(index, draw, args.warm_up)
    blocks = len(chains) * (args.tokens // BLOCK_TOKENS)
    headlines = {
        "published_blocks_per_s": blocks / fill_s,
        "memory_bytes_per_block": (full.total_bytes - empty.total_bytes) / blocks,
        "private_bytes_per_block": (full.private_bytes - empty.private_bytes) / blocks,
        "disk_bytes_per_block": disk_bytes / blocks,
    }
    return _result(args, total_ms, {**parts_ms, "smallest RPC": floor_ms}, headlines)


def _chains(blocks: int, tokens: int, rng: np.random.Generator) -> list[bytes]:
    """Packed keys of chains of one prompt's length; `blocks` in all, rounded up to whole chains."""
    length = tokens // BLOCK_TOKENS
    return [rng.bytes(KEY_BYTES * length) for _ in range(-(-blocks // length))]


def _chain(packed: bytes, tokens: int) -> Chain:
    return Chain(_NAMESPACE.id, tuple(unpack_keys(packed)), tokens, BLOCK_TOKENS)


async def _fill(address: str, chains: list[bytes]) -> float:
    """Publishes all chains as one node's; the seconds it took."""
    async with open_channel(address) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        owner = types_pb2.NodeAddress(node_id="bench", incarnation=1, grpc="127.0.0.1:1")
        await stub.Register(control_pb2.RegisterRequest(caller=caller("kvbench"), address=owner), timeout=_CALL_S)
        began = time.perf_counter()
        batches = [batch for chain in chains for batch in _batches(chain)]
        for sequence, keys in enumerate(progress.track(batches, "filling the index", len(batches)), 1):
            records = control_pb2.Records(
                tier=types_pb2.TIER_DRAM,
                shard_count=1,
                namespace_id=_NAMESPACE.id,
                keys=keys,
                remaining_ms=np.full(len(keys) // 16, _HOUR_MS, "<u4").tobytes(),
            )
            request = control_pb2.PublishRequest(
                caller=caller("kvbench"), node_id="bench", incarnation=1, sequence=sequence, records=[records]
            )
            await stub.Publish(request, timeout=_CALL_S)
        return time.perf_counter() - began


def _batches(packed: bytes) -> list[bytes]:
    step = KEY_BYTES * KEYS_PER_MESSAGE_MAX
    return [packed[start : start + step] for start in range(0, len(packed), step)]


async def _client_ms(socket: str, draw: list[Chain], warm_up: int) -> list[float]:
    """What `AsyncClient.match` takes, keys given."""
    client = await AsyncClient.connect(node=socket, namespace=_NAMESPACE, layout=_LAYOUT)
    try:

        async def match(chain: Chain) -> None:
            found = await client.match(chain)
            if found.blocks != len(chain) or found.partial:
                raise KVStoreError(f"{found} instead of {len(chain)} blocks: the index lost some")

        return await _times_ms([partial(match, chain) for chain in draw], warm_up)
    finally:
        await client.close()


async def _heartbeat_ms(address: str, rounds: int, warm_up: int) -> list[float]:
    """The least that any call takes here."""
    async with open_channel(address) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        request = control_pb2.HeartbeatRequest(caller=caller("kvbench"), node_id="bench", incarnation=1)
        return await _times_ms([partial(stub.Heartbeat, request, timeout=_CALL_S)] * (warm_up + rounds), warm_up)


async def _times_ms(calls: list[Callable[[], Awaitable[Any]]], warm_up: int) -> list[float]:
    """One call after the other; without the warm-up."""
    times = []
    for call in calls:
        began_ns = time.perf_counter_ns()
        await call()
        times.append((time.perf_counter_ns() - began_ns) / 1e6)
    return times[warm_up:]


async def _parts_ms(index_path: str, draw: list[Chain], warm_up: int) -> dict[str, list[float]]:
    """The same matches in this process: index, prefix and columns, the message, and what the client makes of it."""
    index = LmdbIndex(index_path, _INDEX_BYTES_MAX)
    (owner, *_) = await index.nodes()
    address = types_pb2.NodeAddress(node_id=owner.node_id, incarnation=owner.incarnation, grpc="127.0.0.1:1")
    state = NodeState(owner.ref, address, (), 0)
    marks = []
    for chain in draw:
        at = [time.perf_counter_ns()]
        found = await index.lookup(chain.packed, prefix=True)
        at.append(time.perf_counter_ns())
        answered = answer(found, len(chain), 1, lambda ref: ref == owner.ref, time.time_ns() // 1_000_000)
        at.append(time.perf_counter_ns())
        raw = _packed(answered, state)
        at.append(time.perf_counter_ns())
        Locations.of(control_pb2.MatchReply.FromString(raw))
        at.append(time.perf_counter_ns())
        marks.append(at)
    await index.close()
    parts = np.diff(np.array(marks[warm_up:]), axis=1) / 1e6
    return dict(zip(("index look-up", "prefix", "reply", "decode"), parts.T.tolist(), strict=True))


def _packed(answered: Answer, state: NodeState) -> bytes:
    return match_reply(answered, lambda ref: state, tuple, state).SerializeToString()


def _result(
    args: argparse.Namespace, total_ms: list[float], parts_ms: dict[str, list[float]], headlines: dict[str, float]
) -> Result:
    whole = _row("client.match", total_ms)
    return result.of_this_machine(
        "match",
        settings={
            "blocks": args.blocks,
            "tokens": args.tokens,
            "prompt_blocks": args.tokens // BLOCK_TOKENS,
            "rounds": args.rounds,
            "warm_up": args.warm_up,
            "tier": Tier.DRAM.name,
            "seed": args.seed,
        },
        keys=("part",),
        measurements=[whole, *(_row(part, times_ms) for part, times_ms in parts_ms.items())],
        ratios={},
        extras={
            "p50_ms": whole["ms"]["p50"],
            "p99_ms": whole["ms"]["p99"],
            **headlines,
        },
    )


def _row(part: str, times_ms: list[float]) -> dict[str, Any]:
    return {"part": part, "ms": noise.summary(noise.parts(times_ms))}
