"""When to compress, and how large slots are."""

from hypothesis import given
from hypothesis import strategies as st

from kvstore.policy.compress import Worth, class_length

STEP = 4096


def tries(worth: Worth, blocks: int, smaller: bool) -> int:
    count = 0
    for _ in range(blocks):
        if worth.try_next():
            count += 1
            worth.tried(smaller)
    return count


def test_what_gets_smaller_is_always_tried() -> None:
    """For ever."""
    assert tries(Worth(), 1000, True) == 1000


def test_what_does_not_is_tried_now_and_then() -> None:
    """Eight times in a row, then one in sixty-four; once it pays again, always."""
    worth = Worth()
    assert tries(worth, 8, False) == 8
    assert tries(worth, 640, False) == 10
    assert tries(worth, 64, True) == 1
    assert tries(worth, 10, True) == 10


@given(st.integers(1, 2**24), st.integers(1, 2**24))
def test_there_are_few_size_classes(length: int, whole: int) -> None:
    """Eight at most, each a multiple of the step, none larger than the plain block's, and the bytes fit."""
    length, whole = sorted((length, -(-whole // STEP) * STEP)) if length < whole else (whole, -(-whole // STEP) * STEP)
    classes = {class_length(n, whole, STEP) for n in range(1, whole + 1, max(1, whole // 64))}
    assert len(classes) <= 8
    assert all(size % STEP == 0 and size <= whole for size in classes)
    assert class_length(length, whole, STEP) >= length
