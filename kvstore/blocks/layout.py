"""Layout: how the KV of one block lies in an engine's memory.

A *layer block* is the engine's pages of one layer for `block_tokens` consecutive tokens: tensor by tensor (K, then V,
unless packed), page by page, opaque bytes. A *full block* is the plain concatenation of its layer blocks, so any
range of layers is one contiguous range of bytes. Blocks are never converted; two sides exchange blocks only when their
layout fingerprints are equal.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvstore.errors import InvalidInput, UnsupportedLayout

BLOCK_TOKENS = 64
GRANULE_BYTES_MAX = 256 * 1024
CHECKSUM_BYTES = 8
"""Of one granule: xxh3-64, little-endian."""

_ORDERS = frozenset({"NHD", "HND"})
_PACKINGS = frozenset({"separate", "packed", "latent"})


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers whose KV is kept alike.

    page_tokens: tokens of one page; divides `block_tokens`.
    page_bytes: bytes of one page of one tensor of one layer.
    tensors: 2 where K and V are separate tensors, 1 where they are packed into one or latent (MLA).
    order: NHD (page, token, head, dim) or HND (page, head, token, dim).
    kind: only "full" attention is supported; sliding windows and state-space groups are refused by `Layout`.
    """

    layers: int
    page_tokens: int
    page_bytes: int
    dtype: str
    tensors: int = 2
    order: str = "NHD"
    packing: str = "separate"
    kind: str = "full"

    def __post_init__(self) -> None:
        for name in ("layers", "page_tokens", "page_bytes", "tensors"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 < value < 2**32:
                raise InvalidInput(f"layout: {name} must be a positive 32-bit integer, not {value!r}")
        if self.order not in _ORDERS:
            raise InvalidInput(f"layout: order must be one of {sorted(_ORDERS)}, not {self.order!r}")
        if self.packing not in _PACKINGS:
            raise InvalidInput(f"layout: packing must be one of {sorted(_PACKINGS)}, not {self.packing!r}")


@dataclass(frozen=True, slots=True)
class Layout:
    """One shard's layout.

    Raises UnsupportedLayout for more than one group or a group that is not full attention, InvalidInput for values that
    no engine has.
    """

    groups: tuple[LayerGroup, ...]
    block_tokens: int = BLOCK_TOKENS

    def __post_init__(self) -> None:
        if not self.groups:
            raise InvalidInput("layout: at least one group of layers is needed")
        if len(self.groups) > 1 or self.groups[0].kind != "full":
            kinds = [group.kind for group in self.groups]
            raise UnsupportedLayout(f"layout: hybrid attention groups {kinds} are not supported, only one group 'full'")
        if not isinstance(self.block_tokens, int) or not 0 < self.block_tokens <= 65536:
            raise InvalidInput(f"layout: block_tokens must be within 1 … 65536, not {self.block_tokens!r}")
        if self.block_tokens % self.group.page_tokens:
            raise InvalidInput(
                f"layout: page_tokens {self.group.page_tokens} does not divide block_tokens {self.block_tokens}"
            )

    @classmethod
    def dense(
        cls,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: str = "bfloat16",
        dtype_bytes: int = 2,
        page_tokens: int = 16,
        block_tokens: int = BLOCK_TOKENS,
        order: str = "NHD",
    ) -> "Layout":
        """The layout of a model with separate K and V (MHA, GQA); `kv_heads` are those of this shard."""
        page_bytes = page_tokens * kv_heads * head_dim * dtype_bytes
        group = LayerGroup(layers=layers, page_tokens=page_tokens, page_bytes=page_bytes, dtype=dtype, order=order)
        return cls(groups=(group,), block_tokens=block_tokens)

    @property
    def group(self) -> LayerGroup:
        return self.groups[0]

    @property
    def layers(self) -> int:
        return self.group.layers

    @property
    def pages_per_block(self) -> int:
        return self.block_tokens // self.group.page_tokens

    @property
    def tensor_bytes(self) -> int:
        """Bytes of one tensor of one layer of one block."""
        return self.pages_per_block * self.group.page_bytes

    @property
    def layer_bytes(self) -> int:
        """Bytes of a layer block."""
        return self.group.tensors * self.tensor_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of a full block."""
        return self.layers * self.layer_bytes

    @property
    def granule_layers(self) -> int:
        """Layers of one granule: as many whole ones as fit in GRANULE_BYTES_MAX, at least one."""
        return max(1, min(self.layers, GRANULE_BYTES_MAX // self.layer_bytes))

    @property
    def granule_bytes(self) -> int:
        return self.granule_layers * self.layer_bytes

    @property
    def granules(self) -> int:
        """Granules of a block; the last one may be shorter."""
        return -(-self.layers // self.granule_layers)

    @property
    def checksum_bytes(self) -> int:
        """Bytes of the checksums of a block, one per granule."""
        return self.granules * CHECKSUM_BYTES

    @property
    def fingerprint(self) -> bytes:
        """16 bytes that name all of it."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()
        return hashlib.blake2b(canonical, digest_size=16, person=b"kvstore-layout").digest()

    def layer_range(self, first_layer: int, layer_count: int) -> tuple[int, int]:
        """(offset, length) in bytes of a range of layers in a full block."""
        assert first_layer >= 0
        assert 0 < layer_count <= self.layers - first_layer
        return first_layer * self.layer_bytes, layer_count * self.layer_bytes

    def granules_before(self, layers: int) -> int:
        """How many granules are complete once the first `layers` layers are."""
        return self.granules if layers >= self.layers else layers // self.granule_layers

    def __repr__(self) -> str:
        return (
            f"Layout({self.layers} layers × {self.layer_bytes} B, block of {self.block_tokens} tokens, "
            f"{self.fingerprint.hex()[:8]})"
        )


def layer_groups(layout: Layout, group_layers: int) -> Sequence[tuple[int, int]]:
    """(first layer, layer count) of the layer groups of a load.

    `group_layers` is rounded up to whole granules, so that every group can be verified alone; 0 means one group.
    """
    if group_layers < 0:
        raise InvalidInput(f"group_layers must not be negative: {group_layers}")
    step = layout.layers if group_layers == 0 else -(-group_layers // layout.granule_layers) * layout.granule_layers
    return [(first, min(step, layout.layers - first)) for first in range(0, layout.layers, step)]


def layout_from_fields(block_tokens: int, groups: Sequence[dict[str, Any]]) -> Layout:
    """The layout that a message or a file describes; raises as `Layout` does."""
    return Layout(groups=tuple(LayerGroup(**fields) for fields in groups), block_tokens=block_tokens)
