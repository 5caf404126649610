"""In which order blocks are exported: every chain from its root on, and what branches off from it after it. Pure."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

from kvstore.cli.archive import ArchivedBlock

Blocks = Mapping[bytes, ArchivedBlock]
"""Of one shard, by their keys."""


def in_order(blocks: Blocks) -> Iterator[ArchivedBlock]:
    """Each once; a block after its parent, and mostly right after it."""
    children: dict[bytes, list[ArchivedBlock]] = defaultdict(list)
    for block in blocks.values():
        if block.parent in blocks:
            children[block.parent].append(block)
    waiting = sorted((each for each in blocks.values() if each.parent not in blocks), key=_place, reverse=True)
    while waiting:
        block = waiting.pop()
        yield block
        waiting += sorted(children.pop(block.key, ()), key=_place, reverse=True)


def with_ancestors(blocks: Blocks, keys: Collection[bytes]) -> dict[bytes, ArchivedBlock]:
    """Some blocks, those of them that there are, and what is before them in their chains."""
    chosen: dict[bytes, ArchivedBlock] = {}
    for key in keys:
        while key not in chosen and (block := blocks.get(key)) is not None:
            chosen[key] = block
            key = block.parent
    return chosen


def _place(block: ArchivedBlock) -> tuple[int, bytes]:
    return block.depth, block.key


def merged(listed: Iterable[ArchivedBlock]) -> dict[tuple[int, int], dict[bytes, ArchivedBlock]]:
    """By shard, (rank, number of shards): what several nodes have listed, each block once, with its place if one knows
    it."""
    shards: dict[tuple[int, int], dict[bytes, ArchivedBlock]] = defaultdict(dict)
    for block in listed:
        blocks = shards[block.rank, block.shards]
        known = blocks.get(block.key)
        if known is None or (block.parent and not known.parent):
            blocks[block.key] = block
    return dict(sorted(shards.items()))
