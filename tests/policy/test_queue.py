"""RisingQueue: least key first, though keys rise unannounced."""

import random
from dataclasses import dataclass

from kvstore.policy.queue import RisingQueue


@dataclass(eq=False)
class Item:
    key: int


def queue_of(*keys: int) -> tuple[RisingQueue[Item], list[Item]]:
    queue: RisingQueue[Item] = RisingQueue(lambda item: item.key)
    items = [Item(key) for key in keys]
    for item in items:
        queue.add(item)
    return queue, items


def drained(queue: RisingQueue[Item]) -> list[Item]:
    return [item for item in iter(queue.pop, None) if item is not None]


def test_pops_by_key_then_by_arrival() -> None:
    """Least key first; equal keys in the order in which they came."""
    queue, (first, second, third) = queue_of(2, 1, 2)
    assert drained(queue) == [second, first, third]


def test_a_risen_key_is_noticed_when_it_comes_up() -> None:
    """An item whose key rose goes behind those that it passed."""
    queue, (risen, other) = queue_of(1, 2)
    risen.key = 3
    assert queue.first() is other
    assert drained(queue) == [other, risen]


def test_a_fallen_key_is_noticed_when_told() -> None:
    """`lower` brings an item forward; for one that is not queued nothing happens."""
    queue, (other, fallen) = queue_of(1, 2)
    fallen.key = 0
    queue.lower(fallen)
    assert queue.pop() is fallen
    queue.lower(fallen)
    assert drained(queue) == [other]


def test_an_item_is_there_once() -> None:
    """Adding twice, or again after it left, gives it out once."""
    queue, (item,) = queue_of(1)
    queue.add(item)
    queue.discard(item)
    queue.add(item)
    assert len(queue) == 1
    assert drained(queue) == [item]
    assert item not in queue


def test_several_at_once_are_ordered_as_one_by_one() -> None:
    """`add_all` puts each item at its key."""
    queue, (middle,) = queue_of(5)
    low, high = Item(1), Item(9)
    queue.add_all([high, low])
    assert drained(queue) == [low, middle, high]


def test_items_that_left_do_not_pile_up() -> None:
    """A million comings and goings of few items keep the heap small."""
    queue, items = queue_of(*range(10))
    for _ in range(1000):
        for item in items:
            queue.discard(item)
            queue.add(item)
    assert len(queue._heap) < 200
    assert drained(queue) == items


def test_no_operation_looks_through_all_that_left() -> None:
    """Half of many items leave: what is left moves to a new heap a few at a time, and none is lost on the way."""
    queue, items = queue_of(*range(4000))
    moved = 0
    for item in items[:2500]:
        before = len(queue._heap) + len(queue._former)
        queue.discard(item)
        assert before - len(queue._heap) - len(queue._former) <= 8
        moved += bool(queue._former)
        assert item not in queue
    assert moved > 100
    assert len(queue._former) + len(queue._heap) < 4000
    assert drained(queue) == items[2500:]


def test_agrees_with_sorting() -> None:
    """Random additions, removals, rises and falls, against a list that is sorted anew each time."""
    seed = random.Random(7)
    queue, items = queue_of(*range(300))
    inside = set(items)
    for _ in range(6000):
        item = seed.choice(items)
        if item in inside and seed.random() < 0.1:
            item.key -= seed.randrange(50)
            queue.lower(item)
        elif item in inside and seed.random() < 0.6:
            queue.discard(item)
            inside.discard(item)
        elif item not in inside:
            item.key = seed.randrange(1000)
            queue.add(item)
            inside.add(item)
        else:
            item.key += seed.randrange(50)
        first = queue.first()
        assert first is None if not inside else first is not None and first.key == min(i.key for i in inside)
