"""LeastRecent: the order in which pressure takes candidates."""

from dataclasses import dataclass
from operator import attrgetter

from kvstore.policy.evict import LeastRecent


@dataclass(eq=False)
class Block:
    touched: int
    depth: int = 0
    candidate: bool = True


def order_of(*blocks: Block) -> LeastRecent[Block]:
    order: LeastRecent[Block] = LeastRecent()
    for block in blocks:
        order.offer(block)
    return order


def taken(order: LeastRecent[Block]) -> list[Block]:
    return [block for block in iter(lambda: order.take(attrgetter("candidate")), None) if block is not None]


def test_least_recent_first_and_the_deepest_of_those_touched_together() -> None:
    """Recency decides, then depth."""
    late, shallow, deep = Block(2, 9), Block(1, 0), Block(1, 5)
    assert taken(order_of(late, shallow, deep)) == [deep, shallow, late]


def test_a_touch_counts_without_being_told() -> None:
    """A block touched after it was offered goes later."""
    touched, other = Block(1), Block(2)
    order = order_of(touched, other)
    touched.touched = 3
    assert taken(order) == [other, touched]


def test_orphans_go_before_all_others() -> None:
    """A block that lost its ancestor is of no use to anybody."""
    other, orphan = Block(1), Block(2)
    order = order_of(other, orphan)
    orphan.touched = 0
    order.orphaned(orphan)
    assert taken(order) == [orphan, other]


def test_what_is_no_candidate_is_passed_over_until_offered_again() -> None:
    """A pinned block is skipped, and comes back by its offer."""
    pinned, other = Block(1, candidate=False), Block(2)
    order = order_of(pinned, other)
    assert taken(order) == [other]
    pinned.candidate = True
    assert taken(order) == []
    order.offer(pinned)
    assert taken(order) == [pinned]


def test_a_forgotten_block_never_comes_up() -> None:
    """Blocks that went another way are not evicted again."""
    gone = Block(1)
    order = order_of(gone)
    order.forget(gone)
    assert gone not in order
    assert taken(order) == []
