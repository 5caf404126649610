"""Tags: never twice, 64 bits, and one says nothing of the next."""

import itertools

from kvstore.fabric.tags import Tags


def test_no_tag_comes_twice() -> None:
    """Within one counter: it is a permutation."""
    tags = Tags()
    given = [tags.next() for _ in range(50_000)]
    assert len(set(given)) == len(given)
    assert all(0 <= tag < 2**64 for tag in given)


def test_a_tag_cannot_be_guessed_from_others() -> None:
    """Two counters have nothing in common, neighbours differ in about half of their bits, and all bits are used."""
    one, two = Tags(), Tags()
    ours, theirs = [[tags.next() for _ in range(2000)] for tags in (one, two)]
    assert not set(ours) & set(theirs)
    distances = [(a ^ b).bit_count() for a, b in itertools.pairwise(ours)]
    assert 30 < sum(distances) / len(distances) < 34
    for bit in range(64):
        assert 800 < sum(tag >> bit & 1 for tag in ours) < 1200
