"""`kvstore admin explain`: where each block of a prompt is, and why it is nowhere."""

import argparse
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from google.protobuf.message import Message

from kvstore.blocks.keys import chain
from kvstore.cli import admin_prefix
from kvstore.cli.admin_prefix import Prefix
from kvstore.cli.asking import SeedOf, did_not_answer, seeds
from kvstore.cli.tables import show, table
from kvstore.errors import InvalidInput
from kvstore.observe.verdicts import Verdict
from kvstore.pb import admin_pb2, admin_pb2_grpc
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX, caller
from kvstore.rpc.namespaces import namespace_message

_OTHERS_MAX = 4
_OTHER_BLOCKS_MAX = 1024
_HERE = (Verdict.HERE, Verdict.NOT_WORTH_LOADING)


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Adds `explain`."""
    explain = commands.add_parser(
        "explain", parents=[shared], help="where the blocks of a prompt are, and why they are nowhere"
    )
    admin_prefix.add_what(explain)
    explain.add_argument(
        "--shards", type=int, default=1, choices=range(1, 1025), metavar="N", help="ranks with a part each (default: 1)"
    )
    explain.set_defaults(ask=_explain, show=_show)


async def _explain(stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace) -> Message:
    seed_of = seeds(stub, args.door, args.deadline_s)
    prefix = await admin_prefix.what(args, seed_of)
    if not prefix.keys:
        raise InvalidInput("explain: the prompt has no full block")
    reply = await _ask(stub, args, prefix)
    if prefix.tokens is not None and reply.blocks[0].verdict == Verdict.NEVER_STORED:
        await _look_elsewhere(stub, args, prefix, reply, seed_of)
    return reply


async def _ask(
    stub: "admin_pb2_grpc.AdminAsyncStub", args: argparse.Namespace, prefix: Prefix
) -> admin_pb2.ExplainPrefixReply:
    """Blocks beyond what one message may have are not asked for: a prompt misses at its first one that does."""
    count = KEYS_PER_MESSAGE_MAX // args.shards
    request = admin_pb2.ExplainPrefixRequest(
        caller=caller("admin"),
        namespace_id=prefix.namespace_id,
        shard_count=args.shards,
        keys=b"".join(prefix.keys[:count]),
        namespace=None if prefix.namespace is None else namespace_message(prefix.namespace),
    )
    return await stub.Explain(request, timeout=args.deadline_s)


async def _look_elsewhere(
    stub: "admin_pb2_grpc.AdminAsyncStub",
    args: argparse.Namespace,
    prefix: Prefix,
    reply: admin_pb2.ExplainPrefixReply,
    seed_of: SeedOf,
) -> None:
    """Nobody knows the prompt in its namespace: perhaps it was stored in one that differs."""
    assert prefix.tokens is not None
    assert prefix.namespace is not None
    near = [other for other in reply.near if other.namespace.hash_scheme == prefix.namespace.hash_scheme]
    for other in near[:_OTHERS_MAX]:
        seed = await seed_of(other.namespace_id)
        keys = chain(other.namespace_id, prefix.tokens, other.block_tokens, seed=seed).keys[:_OTHER_BLOCKS_MAX]
        if not keys:
            continue
        there = await _ask(stub, args, Prefix(other.namespace_id, keys))
        stored = sum(block.verdict in _HERE for block in there.blocks)
        if stored:
            text = f"{stored} blocks of the prompt are stored in another namespace: {'; '.join(other.differs)}"
            for block in reply.blocks:
                if block.verdict == Verdict.NEVER_STORED:
                    block.verdict, block.text = Verdict.OTHER_NAMESPACE, text
            return


def _show(reply: admin_pb2.ExplainPrefixReply) -> None:
    show(
        table(("blocks", "first key", "verdict", "why"), _rows(reply)),
        f"{reply.matched_blocks} of {len(reply.blocks)} blocks match",
        *map(did_not_answer, reply.unreached),
    )


def _rows(reply: admin_pb2.ExplainPrefixReply) -> Iterator[tuple[str, ...]]:
    """One row for blocks in a row of which the same is said."""
    numbered = enumerate(reply.blocks)
    for (verdict, text), run in groupby(numbered, key=lambda each: (each[1].verdict, each[1].text)):
        blocks = list(run)
        first, last = blocks[0][0], blocks[-1][0]
        name = str(first) if first == last else f"{first} – {last}"
        yield (name, blocks[0][1].key.hex(), verdict, text)
