"""What no policy can beat: a cache without bounds, and Belady's, which knows the future.

A block is used in a request together with all blocks before it in its chain, so their next use is never later than its
own: the one that is used last is always the end of a chain, and no prefix gets a hole.
"""

import heapq
from collections.abc import Sequence

from kvbench.trace import Request


def ideal(requests: Sequence[Request]) -> float:
    """The part of all blocks that were in a request before."""
    asked = sum(len(request.blocks) for request in requests)
    unique = {name for request in requests for name in request.blocks}
    return (asked - len(unique)) / max(1, asked)


def belady(requests: Sequence[Request], capacity_blocks: int) -> float:
    """The part that a cache finds which keeps what is used again soonest, and nothing that is not."""
    next_uses = _next_uses(requests)
    held: dict[int, int] = {}
    latest: list[tuple[int, int, int]] = []  # (-next use, -depth, name); also of those that are gone
    found = 0
    for request, uses in zip(requests, next_uses, strict=True):
        hits = sum(name in held for name in request.blocks)
        found += hits
        for depth, (name, use) in enumerate(zip(request.blocks, uses, strict=True)):
            held.pop(name, None)
            if use < len(requests):
                held[name] = use
                heapq.heappush(latest, (-use, -depth, name))
        while len(held) > capacity_blocks:
            use, _, name = heapq.heappop(latest)
            if held.get(name) == -use:
                del held[name]
    return found / max(1, sum(len(request.blocks) for request in requests))


def _next_uses(requests: Sequence[Request]) -> list[list[int]]:
    """Per request and block, the number of the next request that has it; their count when there is none."""
    following: dict[int, int] = {}
    uses: list[list[int]] = []
    for number in range(len(requests) - 1, -1, -1):
        blocks = requests[number].blocks
        uses.append([following.get(name, len(requests)) for name in blocks])
        following.update((name, number) for name in blocks)
    return uses[::-1]
