"""Layouts as messages."""

from dataclasses import asdict

from kvstore.blocks.layout import Layout, layout_from_fields
from kvstore.pb import types_pb2

_FIELDS = ("kind", "layers", "tensors", "page_tokens", "page_bytes", "order", "packing", "dtype")


def layout_message(layout: Layout) -> types_pb2.Layout:
    groups = [types_pb2.LayerGroup(**asdict(group)) for group in layout.groups]
    return types_pb2.Layout(block_tokens=layout.block_tokens, groups=groups)


def layout_of(message: types_pb2.Layout) -> Layout:
    """Raises what `Layout` does."""
    groups = [{name: getattr(group, name) for name in _FIELDS} for group in message.groups]
    return layout_from_fields(message.block_tokens, groups)
