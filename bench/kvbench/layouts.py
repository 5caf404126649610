"""Layouts of the benches."""

from kvstore.blocks.layout import GRANULE_BYTES_MAX, LayerGroup, Layout


def layout_of(block_bytes: int) -> Layout:
    """Blocks of exactly that size (it is even), in as many equal layers as there are whole granules in it at most."""
    assert block_bytes > 0
    assert block_bytes % 2 == 0
    most = max(1, block_bytes // GRANULE_BYTES_MAX)
    layers = next(count for count in range(most, 0, -1) if block_bytes % (2 * count) == 0)
    group = LayerGroup(layers, page_tokens=64, page_bytes=block_bytes // layers // 2, dtype="uint8")
    return Layout((group,))
