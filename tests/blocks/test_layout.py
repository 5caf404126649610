"""Layouts: ranges, granules and groups of layers cover a block exactly; what is no layout is refused."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.blocks.layout import GRANULE_BYTES_MAX, LayerGroup, Layout, layer_groups, layout_from_fields
from kvstore.errors import InvalidInput, UnsupportedLayout

GROUP = LayerGroup(layers=4, page_tokens=16, page_bytes=1024, dtype="bfloat16")


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    page_tokens = draw(st.integers(1, 32))
    group = LayerGroup(
        layers=draw(st.integers(1, 96)),
        page_tokens=page_tokens,
        page_bytes=draw(st.integers(1, 2 * GRANULE_BYTES_MAX)),
        dtype=draw(st.sampled_from(["bfloat16", "float8_e4m3fn"])),
        tensors=draw(st.sampled_from([1, 2])),
        order=draw(st.sampled_from(["NHD", "HND"])),
        packing=draw(st.sampled_from(["separate", "packed", "latent"])),
    )
    return Layout((group,), block_tokens=page_tokens * draw(st.integers(1, 8)))


@given(layouts())
def test_layer_ranges_lie_end_to_end(layout: Layout) -> None:
    """One range per layer, in order, covers the block without gap or overlap, and any range is their concatenation."""
    end = 0
    for layer in range(layout.layers):
        offset, length = layout.layer_range(layer, 1)
        assert offset == end
        end = offset + length
    assert end == layout.block_bytes
    assert layout.layer_range(0, layout.layers) == (0, layout.block_bytes)


@given(layouts(), st.data())
def test_ranges_outside_are_a_bug(layout: Layout, data: st.DataObject) -> None:
    """A range that leaves the block is caught."""
    first = data.draw(st.integers(0, layout.layers))
    with pytest.raises(AssertionError):
        layout.layer_range(first, layout.layers - first + 1)
    with pytest.raises(AssertionError):
        layout.layer_range(first, 0)
    with pytest.raises(AssertionError):
        layout.layer_range(-1, 1)


@given(layouts())
def test_a_dense_block_is_its_pages(layout: Layout) -> None:
    """The sizes agree with each other: pages make tensors, tensors layers, layers the block."""
    group = layout.group
    assert layout.tensor_bytes * group.page_tokens == layout.block_tokens * group.page_bytes
    assert layout.block_bytes == group.layers * group.tensors * layout.tensor_bytes


@given(layouts())
def test_granules_are_whole_layers_within_their_bound(layout: Layout) -> None:
    """A granule holds as many whole layers as fit its bound, one at least, and the granules cover all layers."""
    assert layout.granule_layers >= 1
    assert layout.granule_layers == 1 or layout.granule_bytes <= GRANULE_BYTES_MAX
    if layout.granule_layers < layout.layers:
        assert layout.granule_bytes + layout.layer_bytes > GRANULE_BYTES_MAX
    assert (layout.granules - 1) * layout.granule_layers < layout.layers <= layout.granules * layout.granule_layers


@given(layouts())
def test_complete_granules_are_counted(layout: Layout) -> None:
    """With the first n layers there, exactly those granules are complete that end within them."""
    ends = [min(layout.layers, (i + 1) * layout.granule_layers) for i in range(layout.granules)]
    for layers in range(layout.layers + 1):
        assert layout.granules_before(layers) == sum(end <= layers for end in ends)


@given(layouts(), st.integers(0, 100))
def test_layer_groups_cover_all_layers(layout: Layout, group_layers: int) -> None:
    """Groups lie end to end, are no smaller than asked (the last aside), and all but the last end with a granule."""
    groups = layer_groups(layout, group_layers)
    assert [layer for first, count in groups for layer in range(first, first + count)] == list(range(layout.layers))
    for first, count in groups[:-1]:
        assert count >= group_layers
        assert count - group_layers < layout.granule_layers
        assert (first + count) % layout.granule_layers == 0
    if group_layers == 0:
        assert len(groups) == 1


def test_negative_groups_are_refused() -> None:
    """A group of less than no layers is no group."""
    with pytest.raises(InvalidInput, match="must not be negative"):
        layer_groups(Layout((GROUP,)), -1)


@given(layouts())
def test_a_layout_survives_its_fields(layout: Layout) -> None:
    """What a message carries rebuilds the layout, fingerprint and all."""
    fields = dataclasses.asdict(layout)
    again = layout_from_fields(fields["block_tokens"], fields["groups"])
    assert again == layout
    assert again.fingerprint == layout.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 5},
        {"page_tokens": 32},
        {"page_bytes": 1025},
        {"dtype": "float16"},
        {"tensors": 1},
        {"order": "HND"},
        {"packing": "packed"},
    ],
)
def test_every_field_is_in_the_fingerprint(change: dict[str, Any]) -> None:
    """Whatever differs between two layouts shows in their fingerprints."""
    assert Layout((dataclasses.replace(GROUP, **change),)).fingerprint != Layout((GROUP,)).fingerprint


def test_the_block_size_is_in_the_fingerprint() -> None:
    """Blocks of another number of tokens are another layout."""
    assert Layout((GROUP,), block_tokens=128).fingerprint != Layout((GROUP,)).fingerprint


def test_dense_counts_the_bytes_of_a_page() -> None:
    """A model's numbers give the page size that its engine has."""
    layout = Layout.dense(layers=32, kv_heads=8, head_dim=128, dtype="float32", dtype_bytes=4, page_tokens=8)
    assert (layout.group.page_bytes, layout.pages_per_block) == (8 * 8 * 128 * 4, 8)
    assert layout.block_bytes == 32 * 2 * 64 * 8 * 128 * 4


@pytest.mark.parametrize(
    ("change", "text"),
    [
        *[({name: value}, name) for name in ("layers", "page_tokens", "page_bytes", "tensors") for value in (0, -1)],
        ({"layers": 2**32}, "layers"),
        ({"page_bytes": 1.5}, "page_bytes"),
        ({"order": "DHN"}, "order"),
        ({"packing": "loose"}, "packing"),
        ({"page_tokens": 24}, "does not divide"),
    ],
)
def test_what_is_no_layout(change: dict[str, Any], text: str) -> None:
    """Values that no engine has are refused by the field's name."""
    with pytest.raises(InvalidInput, match=text):
        Layout((dataclasses.replace(GROUP, **change),))


@pytest.mark.parametrize("block_tokens", [0, -64, 65536 + 16, 64.0])
def test_block_tokens_are_bounded(block_tokens: Any) -> None:
    """A block has between one and 65536 tokens."""
    with pytest.raises(InvalidInput, match="block_tokens"):
        Layout((GROUP,), block_tokens=block_tokens)


def test_a_layout_has_layers() -> None:
    """No groups, no layout."""
    with pytest.raises(InvalidInput, match="at least one group"):
        Layout(())


@pytest.mark.parametrize("groups", [(GROUP, GROUP), (dataclasses.replace(GROUP, kind="sliding"),)])
def test_hybrid_attention_is_refused_by_type(groups: tuple[LayerGroup, ...]) -> None:
    """Layouts that are well formed but not supported yet have an error of their own."""
    with pytest.raises(UnsupportedLayout, match="hybrid attention groups"):
        Layout(groups)
