"""Quotas: what they let be taken, and what can be one."""

import pytest

from kvstore.blocks.state import Tier
from kvstore.errors import InvalidInput
from kvstore.policy.quotas import QUOTA_BYTES_MAX, check_tenant, quota_of, share


@pytest.mark.parametrize(
    ("quota", "used", "wanted", "expected"),
    [
        (100, 0, 5, (5, 0)),
        (100, 60, 5, (4, 1)),
        (100, 69, 5, (3, 2)),
        (100, 100, 5, (0, 5)),
        (100, 170, 5, (0, 5)),
        (0, 0, 1, (0, 1)),
        (100, 0, 0, (0, 0)),
    ],
)
def test_what_a_quota_allows(quota: int, used: int, wanted: int, expected: tuple[int, int]) -> None:
    """Slots of 10 bytes."""
    assert share(quota, used, 10, wanted) == expected


def test_what_is_no_quota() -> None:
    """Negative or beyond all sizes, or of nobody."""
    assert quota_of({"dram_bytes": 0, "nvme_bytes": QUOTA_BYTES_MAX}) == {Tier.DRAM: 0, Tier.NVME: QUOTA_BYTES_MAX}
    for length in (-1, QUOTA_BYTES_MAX + 1):
        with pytest.raises(InvalidInput, match="dram_bytes"):
            quota_of({"dram_bytes": length})
    check_tenant("acme")
    for name in ("", "a" * 256, "a\0b"):
        with pytest.raises(InvalidInput):
            check_tenant(name)
