"""LeastLikely: what it learns turns the order of eviction."""

import pytest

from kvstore.policy.likely import LeastLikely
from tests.contracts.eviction import SECOND_NS, Block, order_of, taken


class Conversations:
    """A policy that has seen conversations: those used twice go on, others end."""

    def __init__(self) -> None:
        self.policy: LeastLikely[Block] = LeastLikely()
        self.now_ns = SECOND_NS
        self._names = 0
        going_on = [self.block() for _ in range(40)]
        for _ in range(60):
            self.now_ns += 20 * SECOND_NS
            self.policy.used([self.block() for _ in range(40)], self.now_ns)
            self.policy.used(going_on, self.now_ns)

    def block(self, touched: int = 1, name: int = 0) -> Block:
        """With a name of its own unless it is given one."""
        self._names += 1
        number = name or 1000 + self._names
        return Block(number * 2654435761 % 2**32 << 96 | number, touched)  # spread as keys are: some are followed

    def use(self, *blocks: Block, after_s: int = 0) -> None:
        self.now_ns += after_s * SECOND_NS
        self.policy.used(blocks, self.now_ns)


def test_what_was_used_again_outlives_what_came_since() -> None:
    """Where that is what blocks do; LRU would do the contrary."""
    seen = Conversations()
    old, new = seen.block(touched=1), seen.block(touched=2)
    for _ in range(3):
        seen.use(old, after_s=20)
    assert taken(order_of(seen.policy, old, new, now_ns=seen.now_ns)) == [new, old]


def test_a_block_that_changed_its_kind_waits_elsewhere() -> None:
    """Also when it was offered before it was used again."""
    seen = Conversations()
    old, new = seen.block(touched=1), seen.block(touched=2)
    order = order_of(seen.policy, old, new, now_ns=seen.now_ns)
    for _ in range(3):
        seen.use(old, after_s=20)
    assert taken(order) == [new, old]


def test_what_comes_back_is_known_again() -> None:
    """A block that was evicted between its uses is no newcomer; one that was never here is."""
    seen = Conversations()
    order = seen.policy.new_order()
    for _ in range(3):
        back = seen.block(touched=1, name=7)
        seen.use(back, after_s=20)
        order.offer(back)
        order.forget(back)
    back, new = seen.block(touched=1, name=7), seen.block(touched=2)
    assert taken(order_of(seen.policy, back, new, now_ns=seen.now_ns)) == [new, back]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that went first are forgotten first."""
    monkeypatch.setattr("kvstore.policy.likely.GONE_MAX", 2)
    policy: LeastLikely[Block] = LeastLikely()
    order = policy.new_order()
    for name in (1, 2, 3, 2):
        gone = Block(name)
        policy.used([gone], SECOND_NS)
        order.forget(gone)
    back = [Block(name) for name in (1, 2, 3)]
    policy.used(back, SECOND_NS)
    assert [block.uses for block in back] == [1, 3, 2]


def test_what_is_expected_falls_to_nothing_known() -> None:
    """A policy that has seen nothing prefers by recency, whatever the kinds."""
    policy: LeastLikely[Block] = LeastLikely()
    used, other = Block(1, 1), Block(2, 2)
    for second in range(1, 9, 2):
        policy.used([used], second * SECOND_NS)
    assert taken(order_of(policy, other, used, now_ns=9 * SECOND_NS)) == [used, other]
