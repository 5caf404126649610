"""Names that the configuration knows: of policies of eviction, of what goes to NVMe, and of what a node does."""

import difflib
from collections.abc import Callable, Collection
from typing import Any

from kvstore.blocks.state import Tier
from kvstore.config import NodeConfig
from kvstore.errors import ConfigError
from kvstore.policy.evict import EvictionPolicy, Lru
from kvstore.policy.likely import LeastLikely

EVICTION: dict[str, Callable[[], EvictionPolicy[Any]]] = {"lru": Lru, "likely": LeastLikely}
_ADMISSIONS = {"all": 1, "second-hit": 2}
_ROLES = ("prefill", "decode", "storage")


def check_eviction(name: str, place: str) -> None:
    """Raises ConfigError, with the nearest known name, for one that is not known. place: the setting."""
    _expect_known(name, EVICTION, f"{place}: no eviction policy")


def check_roles(config: NodeConfig) -> None:
    """Raises ConfigError: a storage node whose role is misspelt would be none."""
    for role in config.roles:
        _expect_known(role, _ROLES, "node.roles: no role")


def _expect_known(name: str, known: Collection[str], wrong: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise ConfigError(f"{wrong} {name!r}: {hint}")


def eviction_of_tiers(config: NodeConfig) -> dict[Tier, EvictionPolicy[Any]]:
    """By tier. Tiers of the same policy share what it learns. Raises ConfigError for an unknown name."""
    names = {Tier.DRAM: config.dram_evict, Tier.NVME: config.nvme_evict}
    for tier, name in names.items():
        check_eviction(name, f"node.{tier.name.lower()}_evict")
    policies = {name: EVICTION[name]() for name in names.values()}
    return {tier: policies[name] for tier, name in names.items()}


def admission(config: NodeConfig) -> int:
    """At which touch a block is owed to NVMe. Raises ConfigError."""
    if config.nvme_admit not in _ADMISSIONS:
        raise ConfigError(f"node.nvme_admit must be one of {', '.join(_ADMISSIONS)}, not {config.nvme_admit!r}")
    return _ADMISSIONS[config.nvme_admit]
