"""LeastLikely: what it learns turns the order of eviction."""

from kvstore.policy.likely import SHARED_USES_MIN, LeastLikely
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

    def block(self, touched: int = 1, parent: Block | None = None) -> Block:
        self._names += 1
        spread = self._names * 2654435761 % 2**32 << 96  # as keys are, of which some are followed
        return Block(spread | self._names, touched, 0 if parent is None else 1, parent=parent)

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


def test_kinds_tell_a_continued_chain_from_a_new_one() -> None:
    """What follows a widely shared beginning is new; what follows a chain in use continues it; what came with the
    block before it is as that one."""
    seen = Conversations()
    system, question = seen.block(), seen.block()
    for _ in range(SHARED_USES_MIN):
        seen.use(system, after_s=20)
    for _ in range(2):
        seen.use(question, after_s=20)
    opening, turn = seen.block(parent=system), seen.block(parent=question)
    end = seen.block(parent=turn)
    seen.use(system, opening)
    seen.use(question, turn, end)
    assert opening.kind != turn.kind == end.kind
    assert opening.kind == _kind_of_a_first(seen)


def test_what_is_expected_falls_to_nothing_known() -> None:
    """A policy that has seen nothing prefers by recency, whatever the kinds."""
    policy: LeastLikely[Block] = LeastLikely()
    used, other = Block(1, 1), Block(2, 2)
    for second in range(1, 9, 2):
        policy.used([used], second * SECOND_NS)
    assert taken(order_of(policy, other, used, now_ns=9 * SECOND_NS)) == [used, other]


def _kind_of_a_first(seen: Conversations) -> int:
    block = seen.block()
    seen.use(block)
    return block.kind
