"""Pieces: how a load is cut. Pure.

A piece is one block × a range of layers, whole granules, at most about `piece_bytes`; those of a group are as even as
granules allow. Pieces go layer group first, so that the first layers of all blocks arrive before the last layers of
any.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from kvstore.blocks.layout import CHECKSUM_BYTES, Layout


@dataclass(frozen=True, slots=True)
class Piece:
    """block: index in the load. Offset and length in bytes of the block."""

    block: int
    first_layer: int
    layers: int
    offset: int
    length: int

    def checksums_of(self, block: bytes, layout: Layout) -> bytes:
        """The piece's part of the checksums of its block; as much of it as is known."""
        first = layout.granules_before(self.first_layer) * CHECKSUM_BYTES
        last = layout.granules_before(self.first_layer + self.layers) * CHECKSUM_BYTES
        return block[first:last]


def layer_ranges(layout: Layout, groups: Sequence[tuple[int, int]], piece_bytes: int) -> list[list[tuple[int, int]]]:
    """For each layer group, the (first layer, layer count) ranges of its pieces."""
    most = max(1, piece_bytes // layout.granule_bytes)
    return [_even(first, count, layout.granule_layers, most) for first, count in groups]


def _even(first: int, count: int, granule_layers: int, most: int) -> list[tuple[int, int]]:
    """Pieces of nearly the same length, at most `most` granules each: a short remainder costs as much as a piece."""
    granules = -(-count // granule_layers)
    pieces = -(-granules // most)
    borders = [first + min(count, number * granules // pieces * granule_layers) for number in range(pieces + 1)]
    return [(begin, end - begin) for begin, end in pairwise(borders)]


def cut(
    layout: Layout, groups: Sequence[tuple[int, int]], blocks: Sequence[int], piece_bytes: int
) -> list[list[Piece]]:
    """The pieces of some blocks of a load: those of each layer group, in the order in which they are wanted."""
    return [
        [
            Piece(block, first_layer, layers, *layout.layer_range(first_layer, layers))
            for block in blocks
            for first_layer, layers in ranges
        ]
        for ranges in layer_ranges(layout, groups, piece_bytes)
    ]
