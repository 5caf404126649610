"""The blocks of one namespace and shard, as the tree that their chains make.

An entry is *live* (it has slots), *pending* (a lease is writing it), or a *ghost*: a block that is not here while
descendants of it are. Ghosts keep the tree whole over holes, so that no ancestor is ever evicted before its descendant.
An entry that is none of these is pruned at once.

Children form a linked list through the entries: most blocks have one child, a system prompt's last block has thousands.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from kvstore.blocks.layout import Layout
from kvstore.blocks.state import Tier
from kvstore.node.answers import Above, ShardId
from kvstore.policy.rules import NamespaceRules
from kvstore.policy.slots import Slot

if TYPE_CHECKING:
    from kvstore.node.leases import Lease


class OpenNamespace:
    """A namespace that was opened here, with the trees of its shards.

    turned_leaf: told of each live entry that has lost its last child. held_blocks, held_bytes: copies and their slots,
    by tier. gone: blocks that went, by reason."""

    __slots__ = (
        "gone",
        "held_blocks",
        "held_bytes",
        "layout",
        "namespace_id",
        "rules",
        "tenant",
        "trees",
        "turned_leaf",
    )

    def __init__(
        self,
        namespace_id: bytes,
        tenant: str,
        layout: Layout,
        rules: NamespaceRules,
        turned_leaf: "Callable[[Block], None]",
    ) -> None:
        self.namespace_id = namespace_id
        self.tenant = tenant
        self.layout = layout
        self.rules = rules
        self.turned_leaf = turned_leaf
        self.trees: dict[ShardId, Tree] = {}
        self.held_blocks: Counter[Tier] = Counter()
        self.held_bytes: Counter[Tier] = Counter()
        self.gone: Counter[str] = Counter()

    def hold(self, tier: Tier, blocks: int, slot_bytes: int) -> None:
        """So many blocks more in a tier, or fewer."""
        self.held_blocks[tier] += blocks
        self.held_bytes[tier] += blocks * slot_bytes

    def tree(self, shard: ShardId) -> "Tree":
        """The tree of a shard, made when it is new."""
        tree = self.trees.get(shard)
        if tree is None:
            tree = self.trees[shard] = Tree(self, shard)
        return tree


class Block:
    """One entry. depth: position in its chain. slots: by tier, fastest first. touched: see `policy.evict.Recency`.
    uses, used_ns, kind: see `policy.evict.Habit`.
    hits: touches since it came. asked_ns: the time that its store asked for, 0: the namespace's. published_ns: the
    deadline that the control plane knows. writer: the open lease that is writing it. owed: the slot that must not be
    given up before the block is on NVMe. guest: it came as a copy of another node's, and nobody has stored it here."""

    __slots__ = (
        "asked_ns",
        "checksums",
        "deadline_ns",
        "depth",
        "first_child",
        "guest",
        "hits",
        "key",
        "kind",
        "next_sibling",
        "owed",
        "parent",
        "previous_sibling",
        "published_ns",
        "slots",
        "touched",
        "tree",
        "used_ns",
        "uses",
        "writer",
    )

    def __init__(self, tree: "Tree", key: bytes, depth: int) -> None:
        self.tree = tree
        self.key = key
        self.depth = depth
        self.slots: list[tuple[Tier, Slot]] = []
        self.checksums = b""
        self.touched = 0
        self.hits = 0
        self.uses = 0
        self.used_ns = 0
        self.kind = 0
        self.owed: Slot | None = None
        self.guest = False
        self.deadline_ns = 0
        self.published_ns = 0
        self.asked_ns = 0
        self.writer: Lease | None = None
        self.parent: Block | None = None
        self.first_child: Block | None = None
        self.next_sibling: Block | None = None
        self.previous_sibling: Block | None = None

    @property
    def parent_key(self) -> bytes:
        """b"" where the parent is not known: a root, or an orphan of a chain that was never here."""
        return b"" if self.parent is None else self.parent.key

    def slot_in(self, tier: Tier) -> Slot | None:
        for held, slot in self.slots:
            if held is tier:
                return slot
        return None

    def children(self) -> Iterator["Block"]:
        child = self.first_child
        while child is not None:
            yield child
            child = child.next_sibling

    def descendants(self) -> Iterator["Block"]:
        """All entries below this one, parents before their children."""
        waiting = list(self.children())
        while waiting:
            block = waiting.pop()
            yield block
            waiting.extend(block.children())

    def __repr__(self) -> str:
        kind = "live" if self.slots else "pending" if self.writer else "ghost"
        return f"Block({self.key.hex()[:8]} at {self.depth}, {kind})"


class Tree:
    """Entries by key."""

    __slots__ = ("blocks", "namespace", "shard")

    def __init__(self, namespace: OpenNamespace, shard: ShardId) -> None:
        self.namespace = namespace
        self.shard = shard
        self.blocks: dict[bytes, Block] = {}

    def entry(self, key: bytes, depth: int, parent: Block | None) -> Block:
        """The entry of a key, made where there is none, as a child of `parent`.

        A child is always deeper than its parent, also when a caller names keys in an order that no chain has: so there
        is never a cycle.
        """
        block = self.blocks.get(key)
        if block is None:
            block = self.blocks[key] = Block(self, key, depth if parent is None else max(depth, parent.depth + 1))
            link(block, parent)
        elif parent is not None and block.parent is not parent and parent.depth < block.depth:
            former = block.parent
            _unlink(block)
            link(block, parent)
            if former is not None:
                self.prune(former)
        return block

    def anchor(self, keys: Sequence[bytes], first: int, above: Above) -> Block | None:
        """The entry that keys[first] hangs on: its parent, a ghost under the nearest ancestor that is here if need be.
        A ghost without children must be pruned by the caller."""
        if first == 0:
            return self.entry(above.parent, above.depth - 1, None) if above.parent else None
        known = self.blocks.get(keys[first - 1])
        if known is not None:
            return known
        ancestors = (self.blocks.get(keys[index]) for index in range(first - 2, -1, -1))
        nearest = next((block for block in ancestors if block is not None), self.blocks.get(above.parent))
        return self.entry(keys[first - 1], above.depth + first - 1, nearest)

    def prune(self, block: Block) -> None:
        """Removes an entry if it has become nothing, and then the ghosts above that it alone kept."""
        current: Block | None = block
        while current is not None and not (current.slots or current.writer or current.first_child):
            parent = current.parent
            _unlink(current)
            del self.blocks[current.key]
            current = parent
        if current is not None and current.slots and current.first_child is None:
            self.namespace.turned_leaf(current)


def link(block: Block, parent: Block | None) -> None:
    """Hangs a block that hangs nowhere on its parent, which is less deep."""
    block.parent = parent
    if parent is None:
        return
    block.next_sibling = parent.first_child
    if parent.first_child is not None:
        parent.first_child.previous_sibling = block
    parent.first_child = block


def _unlink(block: Block) -> None:
    if block.next_sibling is not None:
        block.next_sibling.previous_sibling = block.previous_sibling
    if block.previous_sibling is not None:
        block.previous_sibling.next_sibling = block.next_sibling
    elif block.parent is not None:
        block.parent.first_child = block.next_sibling
    block.parent = block.next_sibling = block.previous_sibling = None
