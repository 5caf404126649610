"""`kvstore admin export`: a namespace, or a prefix of it, into a file. docs/export.md says what is in it.

Nodes say which blocks there are; the bytes come as a client's loads, through the node of this host, a bounded number of
blocks at a time.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.blocks.digest import BUCKETS
from kvstore.blocks.keys import KEY_BYTES, Chain
from kvstore.blocks.salt import seed_check
from kvstore.cli.admin_prefix import hex_key, keys_within
from kvstore.cli.archive import ArchivedBlock, Bytes, Header
from kvstore.cli.archive_file import written
from kvstore.cli.asking import connected, seeds
from kvstore.cli.block_order import in_order, merged, with_ancestors
from kvstore.cli.near_node import add_near_node, address_of, near_client, nodes_alive, tenants_door
from kvstore.cli.tables import progress_of_bytes, show_or_json, shown_bytes, table
from kvstore.client import AsyncClient, buffers
from kvstore.config import DoorConfig
from kvstore.errors import BlocksMissing, DeadlineExceeded, UnknownNamespace
from kvstore.pb import admin_pb2, admin_pb2_grpc, node_pb2
from kvstore.rpc.channel import caller
from kvstore.rpc.namespaces import opened_of

BATCH_BYTES_MAX = 64 * 1024 * 1024
"""What is in memory at once; one block at least."""
_BUCKETS_AT_ONCE = 8
_CALL_S = 30.0
_NO_KEY = bytes(KEY_BYTES)
Shards = Mapping[tuple[int, int], Mapping[bytes, ArchivedBlock]]


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `export`."""
    export = commands.add_parser(
        "export",
        parents=[shared],
        help="a namespace, or a prefix of it, into a file; exit code 1 when some blocks went before they were read",
    )
    export.add_argument("file", type=Path, metavar="FILE", help="what is there is replaced once all is written")
    export.add_argument("--namespace", type=hex_key, required=True, metavar="ID", help="in hexadecimal")
    export.add_argument(
        "--prefix",
        nargs="+",
        metavar="TOKENS|KEY",
        help="only the blocks of a prompt, whose tokens are in a file, or blocks by their keys; with all before them",
    )
    add_near_node(export)
    export.set_defaults(follow=_export, deadline_s=3600.0)


@dataclass(slots=True)
class _Counts:
    exported: int = 0
    missing: int = 0


async def _export(args: argparse.Namespace, door: DoorConfig) -> int:
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(args.deadline_s):
            async with connected(args.control, door) as stub:
                alive = await nodes_alive(stub, _CALL_S)
                seed = await seeds(stub, door, _CALL_S)(args.namespace)
                header, shards = await _listed(stub, args.namespace, [state.address.node_id for state in alive])
            header = replace(header, seed_check=seed_check(seed))
            chosen = _chosen(shards, header, args.prefix, seed)
            counts = _Counts()
            async with written(args.file, header) as archive:
                total_bytes = sum(map(len, chosen.values())) * header.layout.block_bytes
                with progress_of_bytes(f"export to {args.file}", total_bytes) as moved:
                    near = address_of(args.node, alive)
                    async for block, content in _read(near, header, chosen, tenants_door(args, door), counts, moved):
                        await archive.add(block, content)
                digest = await archive.end()
    except TimeoutError:
        raise DeadlineExceeded(f"export: not done within {args.deadline_s:g} s; nothing was written") from None
    said = {
        "file": str(args.file),
        "namespace_id": header.namespace.id.hex(),
        "blocks": counts.exported,
        "missing": counts.missing,
        "bytes": archive.written_bytes,
        "digest": digest.hex(),
        "took_s": round(time.monotonic() - began_s, 3),
    }
    row = (f"{counts.exported:,}", f"{counts.missing:,}", shown_bytes(archive.written_bytes), digest.hex())
    show_or_json(said, args.json, table(("blocks", "gone meanwhile", "file", "digest"), [row], title="exported"))
    return int(counts.missing > 0)


async def _listed(
    stub: "admin_pb2_grpc.AdminAsyncStub", namespace_id: bytes, nodes: Sequence[str]
) -> tuple[Header, Shards]:
    """What all nodes hold of a namespace, and what it is. Raises UnknownNamespace, and what a node answers."""
    header: Header | None = None
    listed: list[ArchivedBlock] = []
    for node_id in nodes:
        for first in range(0, BUCKETS, _BUCKETS_AT_ONCE):
            buckets = range(first, first + _BUCKETS_AT_ONCE)
            request = admin_pb2.ListNodeBlocksRequest(
                caller=caller("admin"), node_id=node_id, namespace_id=namespace_id, buckets=buckets
            )
            reply = await stub.ListBlocks(request, timeout=_CALL_S)
            if reply.HasField("namespace"):
                header = header or Header(*opened_of(reply.namespace, reply.layout))
            listed += _blocks_of(reply)
    if header is None:
        why = "no client has opened it since they started" if listed else "no node that is alive knows it"
        raise UnknownNamespace(f"namespace {namespace_id.hex()}: {why}")
    return header, merged(listed)


def _blocks_of(reply: node_pb2.ListBlocksReply) -> Iterator[ArchivedBlock]:
    for index, (depth, rank, shards) in enumerate(
        zip(
            np.frombuffer(reply.depths, "<u4").tolist(),
            np.frombuffer(reply.shard_ranks, "<u2").tolist(),
            np.frombuffer(reply.shard_counts, "<u2").tolist(),
            strict=True,
        )
    ):
        place = slice(index * KEY_BYTES, (index + 1) * KEY_BYTES)
        parent = reply.parents[place]
        yield ArchivedBlock(reply.keys[place], b"" if parent == _NO_KEY else parent, depth, rank, shards)


def _chosen(
    shards: Shards, header: Header, prefix: Sequence[str] | None, seed: bytes
) -> dict[tuple[int, int], list[ArchivedBlock]]:
    """The blocks to export, in their order. Raises InvalidInput for tokens that are none; BlocksMissing."""
    if prefix is not None:
        keys = keys_within(prefix, header.namespace.id, header.layout.block_tokens, seed)
        shards = {shard: with_ancestors(blocks, keys) for shard, blocks in shards.items()}
    chosen = {shard: list(in_order(blocks)) for shard, blocks in shards.items() if blocks}
    if not chosen:
        raise BlocksMissing(f"no node that is alive has blocks of {'the prefix' if prefix else 'the namespace'}")
    return chosen


async def _read(
    near: str,
    header: Header,
    chosen: Mapping[tuple[int, int], Sequence[ArchivedBlock]],
    door: DoorConfig,
    counts: _Counts,
    moved: Any,
) -> AsyncIterator[tuple[ArchivedBlock, Bytes]]:
    """Every block that is still there, with its bytes, which are used again after it."""
    at_once = max(1, BATCH_BYTES_MAX // header.layout.block_bytes)
    room = np.empty((at_once, header.layout.block_bytes), np.uint8)
    for shard, blocks in chosen.items():
        async with await near_client(near, header, shard, door, read_only=True) as client:
            left = iter(blocks)
            while batch := list(islice(left, at_once)):
                while batch:
                    came = await _load(client, batch, room)
                    for block, content in zip(batch[:came], room, strict=False):
                        yield block, content
                    counts.exported += came
                    counts.missing += came < len(batch)
                    moved(min(came + 1, len(batch)) * header.layout.block_bytes)
                    batch = batch[came + 1 :]


async def _load(client: AsyncClient, blocks: Sequence[ArchivedBlock], room: Bytes) -> int:
    """How many of the first of these blocks have come, verified. Those after one that is not there do not."""
    tokens = client.layout.block_tokens
    asked = Chain(client.namespace.id, tuple(block.key for block in blocks), len(blocks) * tokens, tokens)
    match = await client.match(asked)
    if not match.blocks:
        return 0
    return (await client.load(match, buffers.contiguous(room, client.layout)).result()).blocks
