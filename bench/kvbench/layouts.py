"""Layouts of the benches."""

from kvstore.blocks.layout import GRANULE_BYTES_MAX, LayerGroup, Layout


def layout_of(block_bytes: int) -> Layout:
    """Blocks of that size, in as many layers as there are whole granules in it."""
    layers = max(1, block_bytes // GRANULE_BYTES_MAX)
    group = LayerGroup(layers, page_tokens=64, page_bytes=block_bytes // layers // 2, dtype="uint8")
    return Layout((group,))
