"""Every eviction policy that the configuration knows, under one contract; LRU's own order."""

from collections.abc import Callable
from typing import Any

import pytest

from kvstore.blocks.state import Tier
from kvstore.config import NodeConfig
from kvstore.errors import ConfigError
from kvstore.policy.evict import EvictionPolicy, Lru
from kvstore.policy.policies import EVICTION, check_eviction, eviction_of_tiers
from tests.contracts.eviction import SECOND_NS, Block, EvictionContract, order_of, taken


@pytest.mark.parametrize("make", EVICTION.values(), ids=EVICTION)
class TestPolicies(EvictionContract):
    """All of them."""

    @pytest.fixture
    def policy(self, make: Callable[[], EvictionPolicy[Any]]) -> EvictionPolicy[Any]:
        return make()


def test_lru_knows_nothing_but_recency() -> None:
    """However often a block was used."""
    policy: Lru[Block] = Lru()
    often, once = Block(1, 5), Block(2, 6)
    for second in range(1, 6):
        policy.used([often], second * SECOND_NS)
    assert taken(order_of(policy, once, often)) == [often, once]


def test_an_unknown_policy_is_refused() -> None:
    """With the setting's name, and the nearest one or all that are known."""
    check_eviction("lru", "node.dram_evict")
    with pytest.raises(ConfigError, match=r"node.dram_evict: no eviction policy 'likly': did you mean 'likely'\?"):
        check_eviction("likly", "node.dram_evict")
    with pytest.raises(ConfigError, match="known are lru, likely"):
        check_eviction("xyzzy", "node.dram_evict")


def test_tiers_have_the_policies_that_the_configuration_names() -> None:
    """Tiers of the same one learn together: a block's use is the same in both."""
    one = eviction_of_tiers(NodeConfig(dram_evict="likely", nvme_evict="likely"))
    assert one[Tier.DRAM] is one[Tier.NVME]
    two = eviction_of_tiers(NodeConfig(dram_evict="likely", nvme_evict="lru"))
    assert isinstance(two[Tier.NVME], Lru)
    with pytest.raises(ConfigError, match=r"node.nvme_evict: no eviction policy 'lrru': did you mean 'lru'\?"):
        eviction_of_tiers(NodeConfig(nvme_evict="lrru"))
