"""What every eviction policy must do, whatever it prefers."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from kvstore.policy.evict import EvictionOrder, EvictionPolicy

SECOND_NS = 1_000_000_000


@dataclass(eq=False)
class Block:
    """A block as a policy sees it. candidate: nobody holds it, and nothing that is here descends from it."""

    name: int
    touched: int = 1
    depth: int = 0
    candidate: bool = True
    parent: "Block | None" = None
    first_child: "Block | None" = None
    uses: int = 0
    used_ns: int = 0
    kind: int = 0

    @property
    def key(self) -> bytes:
        return self.name.to_bytes(16, "little")


def order_of(policy: EvictionPolicy[Block], *blocks: Block, now_ns: int = SECOND_NS) -> EvictionOrder[Block]:
    """An order that has been offered blocks, which were used then."""
    policy.used(blocks, now_ns)
    order = policy.new_order()
    for block in blocks:
        order.offer(block)
    return order


def taken(order: EvictionOrder[Block]) -> list[Block]:
    return [block for block in iter(lambda: order.take(attrgetter("candidate")), None) if block is not None]


class EvictionContract:
    """Subclasses give a fixture `policy` with a fresh one."""

    def test_nothing_offered_is_nothing_taken(self, policy: EvictionPolicy[Block]) -> None:
        """None, not an error."""
        assert policy.new_order().take(attrgetter("candidate")) is None

    def test_least_recent_first_while_nothing_is_known(self, policy: EvictionPolicy[Block]) -> None:
        """Of blocks of one sort that were used once; of those touched together the deepest."""
        late, shallow, deep = Block(1, 2, 9), Block(2, 1, 0), Block(3, 1, 5)
        assert taken(order_of(policy, late, shallow, deep)) == [deep, shallow, late]

    def test_a_touch_counts_without_being_told(self, policy: EvictionPolicy[Block]) -> None:
        """A block touched after it was offered goes later."""
        touched, other = Block(1, 1), Block(2, 2)
        order = order_of(policy, touched, other)
        touched.touched = 3
        assert taken(order) == [other, touched]

    def test_orphans_go_before_all_others(self, policy: EvictionPolicy[Block]) -> None:
        """A block that lost its ancestor is of no use to anybody; told of while it is offered, or before."""
        other, orphan, early = Block(1, 1), Block(2, 2), Block(3, 3)
        early.touched = 0
        order = order_of(policy, other, orphan, early)
        orphan.touched = 0
        order.orphaned(orphan)
        assert set(taken(order)[:2]) == {orphan, early}

    def test_an_orphan_that_is_touched_is_like_any_other(self, policy: EvictionPolicy[Block]) -> None:
        """Its chain is whole again."""
        other, orphan = Block(1, 2), Block(2, 1)
        order = order_of(policy, other, orphan)
        orphan.touched = 0
        order.orphaned(orphan)
        orphan.touched = 3
        policy.used([orphan], 2 * SECOND_NS)
        assert orphan in order
        assert sorted(block.name for block in taken(order)) == [1, 2]

    def test_what_is_not_offered_is_not_told_of(self, policy: EvictionPolicy[Block]) -> None:
        """Orphans that are pinned, blocks that went another way."""
        order = policy.new_order()
        order.orphaned(Block(1, 0))
        order.forget(Block(2))
        assert taken(order) == []

    def test_what_is_no_candidate_is_passed_over_until_offered_again(self, policy: EvictionPolicy[Block]) -> None:
        """A pinned block is skipped, and comes back by its offer."""
        pinned, other = Block(1, candidate=False), Block(2)
        order = order_of(policy, pinned, other)
        assert taken(order) == [other]
        pinned.candidate = True
        assert taken(order) == []
        order.offer(pinned)
        assert taken(order) == [pinned]

    def test_a_forgotten_block_never_comes_up(self, policy: EvictionPolicy[Block]) -> None:
        """Blocks that went another way are not evicted again."""
        gone = Block(1)
        order = order_of(policy, gone)
        order.forget(gone)
        assert gone not in order
        assert taken(order) == []

    def test_orders_of_one_policy_are_apart(self, policy: EvictionPolicy[Block]) -> None:
        """One size class's pressure takes nothing from another."""
        here, there = Block(1), Block(2)
        order, other = order_of(policy, here), order_of(policy, there)
        assert taken(order) == [here]
        assert there in other

    def test_any_sequence_of_calls(self, policy: EvictionPolicy[Block]) -> None:
        """Against a model: all that is offered comes up exactly once, candidates only, orphans first."""
        run_state_machine_as_test(
            lambda: EvictionMachine(type(policy)()), settings=settings(max_examples=60, deadline=None)
        )


class EvictionMachine(RuleBasedStateMachine):
    """A forest of blocks under one policy; `offered` is the model."""

    def __init__(self, policy: EvictionPolicy[Block]) -> None:
        super().__init__()
        self.policy = policy
        self.order = policy.new_order()
        self.blocks: list[Block] = []
        self.offered: set[Block] = set()
        self.touches = 0
        self.now_ns = SECOND_NS

    def _touch(self, chain: Sequence[Block]) -> None:
        self.touches += 1
        for block in chain:
            block.touched = self.touches
        self.policy.used(chain, self.now_ns)

    @rule(pick=st.integers(0, 99), below=st.booleans())
    def store(self, pick: int, below: bool) -> None:
        """A new block, alone or at the end of a chain."""
        parent = self.blocks[pick % len(self.blocks)] if below and self.blocks else None
        block = Block(len(self.blocks), depth=0 if parent is None else parent.depth + 1, parent=parent)
        if parent is not None:
            parent.first_child = block
        self.blocks.append(block)
        self._touch(_chain(block))
        self.order.offer(block)
        self.offered.add(block)

    @precondition(lambda self: self.blocks)
    @rule(pick=st.integers(0, 99), later_ns=st.sampled_from([0, SECOND_NS // 2, SECOND_NS, 90 * SECOND_NS]))
    def touch(self, pick: int, later_ns: int) -> None:
        """A chain is used again."""
        self.now_ns += later_ns
        self._touch(_chain(self.blocks[pick % len(self.blocks)]))

    @precondition(lambda self: self.blocks)
    @rule(pick=st.integers(0, 99), what=st.sampled_from(["offer", "forget", "orphaned", "hold", "release"]))
    def tell(self, pick: int, what: str) -> None:
        """Any of the calls, at any time."""
        block = self.blocks[pick % len(self.blocks)]
        if what == "offer":
            self.order.offer(block)
            self.offered.add(block)
        elif what == "forget":
            self.order.forget(block)
            self.offered.discard(block)
        elif what == "orphaned":
            block.touched = 0
            self.order.orphaned(block)
        else:
            block.candidate = what == "release"

    @rule()
    def take(self) -> None:
        """A candidate that was offered; an orphan where there is one; None only when there is none."""
        block = self.order.take(attrgetter("candidate"))
        candidates = {block for block in self.offered if block.candidate}
        if block is None:
            assert not candidates
        else:
            assert block in candidates
            assert not block.touched or all(other.touched for other in candidates)
            self.offered.discard(block)
        # What was found to be held is out until it is offered again.
        self.offered = {block for block in self.offered if block.candidate or block in self.order}

    @invariant()
    def knows_what_is_offered(self) -> None:
        """No more, no less."""
        assert {block for block in self.blocks if block in self.order} == self.offered


def _chain(block: Block) -> list[Block]:
    chain = [block]
    while chain[-1].parent is not None:
        chain.append(chain[-1].parent)
    return chain[::-1]
