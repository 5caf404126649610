"""A trace of requests against the node's own catalog, in virtual time: how many blocks of the prompts are found.

Every request pins the longest prefix that is there, then reserves and commits the rest, as an engine does; no byte is
moved. Beside each figure stand those of a cache without bounds, of LRU in its place, and of Belady's, which knows the
future.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from typing import Any

from kvbench import optimum, progress, result, trace
from kvbench.options import list_of
from kvbench.result import Result
from kvbench.trace import Request
from kvstore.blocks.layout import LayerGroup, Layout
from kvstore.blocks.state import Tier
from kvstore.errors import InvalidInput, KVStoreError
from kvstore.node.catalog import Catalog, ShardId
from kvstore.policy.policies import EVICTION, check_eviction
from kvstore.policy.rules import NamespaceRules
from kvstore.policy.slots import SLOT_ALIGN_BYTES, SlotSpace
from kvstore.policy.ttl import TtlKind, TtlRule

_BLOCK_BYTES = SLOT_ALIGN_BYTES
_SLAB_BLOCKS = 256
_LAYOUT = Layout(groups=(LayerGroup(1, 64, _BLOCK_BYTES, "uint8", tensors=1, packing="packed"),))
_NAMESPACE = bytes(16)
_SHARD = ShardId(0, 1)
_HOLDER = "session:replay"
_HOUR_NS = 3600 * 1_000_000_000
_UNBOUNDED_NS = 2**62
_PROGRESS_REQUESTS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trace", type=Path, required=True, metavar="FILE", help="JSON lines: timestamp, hash_ids")
    parser.add_argument(
        "--tier-blocks",
        type=list_of(int),
        default=[10_000, 20_000, 50_000],
        metavar="N,…",
        help="blocks that fit; 0: all of them (default: 10000,20000,50000)",
    )
    parser.add_argument(
        "--policy",
        type=list_of(str),
        default=[*EVICTION],
        metavar="NAME,…",
        help=f"eviction policies (default: {','.join(EVICTION)})",
    )
    parser.add_argument(
        "--ttl",
        type=list_of(float),
        default=[0.0],
        metavar="S,…",
        help="seconds that blocks live; 0: for ever (default: 0)",
    )
    parser.add_argument(
        "--ttl-kind", choices=[kind.value for kind in TtlKind], default="sliding", help="default: %(default)s"
    )


def run(args: argparse.Namespace) -> Result:
    for name in args.policy:
        check_eviction(name, "--policy")
    if min(args.tier_blocks) < 0:
        raise InvalidInput("--tier-blocks: none may be negative")
    if not all(0 <= ttl_s < 2**31 for ttl_s in args.ttl):
        raise InvalidInput("--ttl: seconds from 0 to 2^31")
    began = time.perf_counter()
    requests = trace.read(args.trace)
    replays = Replays(requests, TtlKind(args.ttl_kind))
    rows = replays.rows(args.policy, args.tier_blocks, args.ttl)
    return result.of_this_machine(
        "replay",
        settings={
            "trace": args.trace.name,
            "requests": len(requests),
            "blocks": replays.asked_blocks,
            "unique_blocks": len(replays.keys),
            "tier_blocks": args.tier_blocks,
            "policies": args.policy,
            "ttl_s": args.ttl,
            "ttl_kind": args.ttl_kind,
        },
        keys=("policy", "tier_blocks", "ttl_s"),
        measurements=rows,
        ratios={_name(row): row["hit_ratio"] / row["ideal"] for row in rows if row["ideal"]},
        extras={
            "hit_ratio": max(row["hit_ratio"] for row in rows),
            "ideal_hit_ratio": replays.ideal,
            "seconds": time.perf_counter() - began,
        },
    )


def _name(row: dict[str, Any]) -> str:
    return f"{row['policy']}, {row['tier_blocks'] or 'all'} blocks, ttl {row['ttl_s'] or 'none'}: of the ideal"


@dataclass(frozen=True, slots=True)
class Setting:
    """One cache. blocks 0: without bound. ttl_s 0: none."""

    policy: str
    blocks: int
    ttl_s: float


class Replays:
    """One trace against several caches."""

    def __init__(self, requests: Sequence[Request], ttl_kind: TtlKind) -> None:
        self.requests = requests
        self.keys = trace.keys(requests)
        self.asked_blocks = sum(len(request.blocks) for request in requests)
        self.ideal = optimum.ideal(requests)
        self._ttl_kind = ttl_kind
        self._known: dict[Setting, tuple[float, float]] = {}

    def rows(self, policies: Sequence[str], sizes: Sequence[int], ttls_s: Sequence[float]) -> list[dict[str, Any]]:
        """One row per setting. LRU is replayed beside each; a cache without bound evicts nothing, whatever policy."""
        settings = [Setting(*drawn) for drawn in product(policies, sizes, ttls_s)]
        optima = {size: optimum.belady(self.requests, size) if size else self.ideal for size in sizes}
        needed = dict.fromkeys(each for setting in settings for each in (setting, _lru(setting)))
        with progress.bar("replay", len(needed) * len(self.requests)) as shown:
            for setting in needed:
                shown.now(f"{setting.policy}, {setting.blocks or 'all'} blocks")
                self._known[setting] = self._replay(setting, shown.done)
        return [self._row(setting, optima[setting.blocks]) for setting in settings]

    def _row(self, setting: Setting, belady: float) -> dict[str, Any]:
        hit_ratio, seconds = self._known[setting]
        return {
            "policy": setting.policy,
            "tier_blocks": setting.blocks,
            "ttl_s": int(setting.ttl_s) if setting.ttl_s.is_integer() else setting.ttl_s,
            "hit_ratio": hit_ratio,
            "lru": self._known[_lru(setting)][0],
            "belady": belady,
            "ideal": self.ideal,
            "seconds": seconds,
        }

    def _replay(self, setting: Setting, on_progress: Callable[[int], None]) -> tuple[float, float]:
        """The hit ratio, and the seconds that it took."""
        began = time.perf_counter()
        cache = Cache(setting, self._ttl_kind, len(self.keys))
        found = 0
        for number, request in enumerate(self.requests, 1):
            found += cache.serve([self.keys[name] for name in request.blocks], request.at_ns)
            if number % _PROGRESS_REQUESTS == 0:
                on_progress(_PROGRESS_REQUESTS)
        cache.check()
        on_progress(len(self.requests) % _PROGRESS_REQUESTS)
        return found / max(1, self.asked_blocks), time.perf_counter() - began


def _lru(setting: Setting) -> Setting:
    return Setting("lru", setting.blocks, setting.ttl_s)


class Cache:
    """A node's catalog with one tier. unique_blocks: what a tier without bound must hold."""

    def __init__(self, setting: Setting, ttl_kind: TtlKind, unique_blocks: int) -> None:
        ids = count(1)
        blocks = setting.blocks or unique_blocks + _SLAB_BLOCKS
        ttl_ns = int(setting.ttl_s * 1_000_000_000) or _UNBOUNDED_NS
        self._catalog = Catalog(
            {Tier.DRAM: SlotSpace(blocks * _BLOCK_BYTES, _SLAB_BLOCKS * _BLOCK_BYTES, count(1))},
            lease_ns=_HOUR_NS,
            hold_ns_max=_HOUR_NS,
            pinned_bytes_max=0,
            new_id=lambda: next(ids).to_bytes(16, "big"),
            rules=NamespaceRules(TtlRule(ttl_kind, ttl_ns)),
            eviction={Tier.DRAM: EVICTION[setting.policy]()},
        )
        self._catalog.open_namespace(_NAMESPACE, "replay", _LAYOUT)

    def serve(self, keys: Sequence[bytes], now_ns: int) -> int:
        """One request; how many leading blocks were there."""
        catalog = self._catalog
        catalog.tick(now_ns)
        found = catalog.match(_NAMESPACE, 1, keys, now_ns)
        if found:
            wanted = [True] * found
            pins = catalog.pin(_NAMESPACE, _SHARD, keys[:found], wanted, _HOLDER, now_ns, now_ns + _HOUR_NS)
            catalog.unpin(pins.pin_id)
        lease = catalog.reserve(_NAMESPACE, _SHARD, keys, found, _HOLDER, now_ns)
        granted = len(lease.places)
        catalog.commit(lease.lease_id, _HOLDER, [True] * granted, [b""] * granted, now_ns)
        catalog.take_actions()
        catalog.take_records()
        return found

    def check(self) -> None:
        """Raises KVStoreError when a conservation law is broken: the figure would mean nothing."""
        violations = self._catalog.violations()
        if violations:
            raise KVStoreError(f"the catalog is not whole: {violations[0]}")
