"""Pieces: whatever the layout, a load is cut into exactly its bytes, in the order in which they are wanted."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.blocks.layout import LayerGroup, Layout, layer_groups
from kvstore.node.pieces import cut

LAYOUTS = st.builds(
    lambda layers, page_bytes, tensors: Layout(
        (LayerGroup(layers=layers, page_tokens=64, page_bytes=page_bytes, dtype="uint8", tensors=tensors),)
    ),
    layers=st.integers(1, 40),
    page_bytes=st.one_of(st.integers(1, 4096), st.integers(1, 600 * 1024)),
    tensors=st.integers(1, 2),
)
BLOCKS = st.lists(st.integers(0, 50), max_size=5, unique=True)


@settings(deadline=None)
@given(LAYOUTS, st.integers(0, 45), BLOCKS, st.integers(1, 8 * 2**20))
def test_every_byte_comes_once_and_in_order(
    layout: Layout, group_layers: int, blocks: list[int], piece_bytes: int
) -> None:
    """Pieces tile each block from end to end; group by group, blocks in the order given, layers rising."""
    groups = layer_groups(layout, group_layers)
    pieces = [piece for group in cut(layout, groups, blocks, piece_bytes) for piece in group]
    for block in blocks:
        at = 0
        for piece in (p for p in pieces if p.block == block):
            assert piece.offset == at == piece.first_layer * layout.layer_bytes
            assert piece.length == piece.layers * layout.layer_bytes
            at += piece.length
        assert at == layout.block_bytes
    assert {p.block for p in pieces} == set(blocks)

    starts = [first for first, _ in groups]
    wanted = [(sum(start <= p.first_layer for start in starts), blocks.index(p.block), p.first_layer) for p in pieces]
    assert wanted == sorted(wanted)


@settings(deadline=None)
@given(LAYOUTS, st.integers(0, 45), st.integers(1, 8 * 2**20))
def test_pieces_are_whole_granules_within_their_bound(layout: Layout, group_layers: int, piece_bytes: int) -> None:
    """A piece begins and ends at the border of a granule, stays in its group, and exceeds the bound only for a granule
    that is larger itself."""
    groups = layer_groups(layout, group_layers)
    for piece in (piece for group in cut(layout, groups, [0], piece_bytes) for piece in group):
        end = piece.first_layer + piece.layers
        assert piece.first_layer % layout.granule_layers == 0
        assert end % layout.granule_layers == 0 or end == layout.layers
        assert any(first <= piece.first_layer and end <= first + count for first, count in groups)
        assert piece.length <= max(piece_bytes, layout.granule_bytes)


@settings(deadline=None)
@given(LAYOUTS, st.integers(0, 45), st.integers(1, 8 * 2**20))
def test_pieces_of_a_group_are_even_and_few(layout: Layout, group_layers: int, piece_bytes: int) -> None:
    """They differ by one granule at most, and there are no more than that length makes necessary."""
    groups = layer_groups(layout, group_layers)
    most = max(1, piece_bytes // layout.granule_bytes)
    for (_, count), pieces in zip(groups, cut(layout, groups, [0], piece_bytes), strict=True):
        granules = [-(-piece.layers // layout.granule_layers) for piece in pieces]
        assert max(granules) - min(granules) <= 1
        assert len(pieces) == math.ceil(math.ceil(count / layout.granule_layers) / most)
