"""Why a prompt missed: what the index, the directory and the nodes know of each block, in one verdict. No I/O.

A block is whole when each of its shards is somewhere. Of a shard that is nowhere, what happened last counts.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kvstore.observe.verdicts import Verdict
from kvstore.pb import node_pb2, types_pb2

NEAR_MAX = 16
_FIELDS = [field.name for field in types_pb2.Namespace.DESCRIPTOR.fields]

DEPARTURES = {
    "expired": (Verdict.EXPIRED, "its time was over"),
    "evicted_pressure": (Verdict.EVICTED, "evicted, its room was needed"),
    "dropped_corrupt": (Verdict.CORRUPT, "dropped, its bytes were not those that were stored"),
    "dropped_unreadable": (Verdict.CORRUPT, "dropped, its device could not read it"),
    "purged": (Verdict.PURGED, "purged by an operator"),
    "lost_with_device": (Verdict.DEVICE_LOST, "gone with its device"),
    "shed_blocks": (Verdict.SHED, "given up as a copy too many"),
    "evicted_quota": (Verdict.EVICTED, "evicted, its tenant's quota was full"),
    "refused_quota": (Verdict.OVER_QUOTA, "its store got no lease, its tenant's quota was full"),
    "refused": (Verdict.LEASE_REFUSED, "its store got no lease, there was no room"),
    "lease_lapsed": (Verdict.LEASE_LAPSED, "its writer went silent before it had committed"),
}
"""By what nodes call it: verdict, and words for it."""


class Hint(NamedTuple):
    """One location by the index. alive: a match may name the node."""

    node_id: str
    alive: bool
    rank: int
    shards: int


class Explained(NamedTuple):
    """Of one block. text: for people."""

    verdict: Verdict
    text: str


class Asked(NamedTuple):
    """What was asked, and who answered what. states: by node, all blocks of rank 0, then all of rank 1, …
    matched_blocks: what a match answers. hints: per block. unreached: nodes that did not answer."""

    blocks: int
    shard_count: int
    matched_blocks: int
    hints: Sequence[Sequence[Hint]]
    states: Mapping[str, Sequence[node_pb2.KeyState]]
    unreached: Sequence[str]


def verdicts(asked: Asked) -> list[Explained]:
    """One per block."""
    found = []
    for block in range(asked.blocks):
        rank = _missing_rank(asked, block)
        found.append(_here(asked, block) if rank is None else _why(asked, block, rank))
    return found


def _of(asked: Asked, block: int, rank: int) -> dict[str, node_pb2.KeyState]:
    return {node_id: states[rank * asked.blocks + block] for node_id, states in asked.states.items()}


def _missing_rank(asked: Asked, block: int) -> int | None:
    """The first shard that no node has; None: the block is whole."""
    ranks = range(asked.shard_count)
    return next((rank for rank in ranks if not any(state.tiers for state in _of(asked, block, rank).values())), None)


def _here(asked: Asked, block: int) -> Explained:
    states = _of(asked, block, 0)
    places = "on " + ", ".join(
        f"{node_id} ({', '.join(_tier(tier) for tier in state.tiers)})"
        for node_id, state in sorted(states.items())
        if state.tiers
    )
    if block >= asked.matched_blocks:
        known = {hint.rank for hint in asked.hints[block] if hint.alive and hint.shards == asked.shard_count}
        if len(known) < asked.shard_count:
            return Explained(Verdict.UNPUBLISHED, f"{places}, but the control plane does not know it, or not yet")
        return Explained(Verdict.BEHIND_GAP, f"{places}, but no match gets past block {asked.matched_blocks}")
    declined = [(state.declined_ms_ago, node_id) for node_id, state in states.items() if state.declined]
    if declined:
        ago_ms, node_id = min(declined)
        words = f"{_ago(ago_ms)} a client of {node_id} found it sooner computed than loaded"
        return Explained(Verdict.NOT_WORTH_LOADING, f"{places}; {words}")
    return Explained(Verdict.HERE, places)


def _why(asked: Asked, block: int, rank: int) -> Explained:
    states = _of(asked, block, rank)
    of_shard = f"shard {rank} of {asked.shard_count}: " if asked.shard_count > 1 else ""
    writing = [node_id for node_id, state in sorted(states.items()) if state.being_written]
    if writing:
        return Explained(Verdict.BEING_WRITTEN, f"{of_shard}being written on {', '.join(writing)}")
    hints = [hint for hint in asked.hints[block] if (hint.rank, hint.shards) == (rank, asked.shard_count)]
    down = sorted({hint.node_id or "a node that is gone" for hint in hints if not hint.alive})
    unreached = sorted({hint.node_id for hint in hints if hint.alive and hint.node_id in asked.unreached})
    if down or unreached:
        return Explained(Verdict.NODE_DOWN, f"{of_shard}on {', '.join([*down, *unreached])}, which does not answer")
    gone = [(state.gone_ms_ago, node_id, state.gone) for node_id, state in states.items() if state.gone]
    if gone:
        ago_ms, node_id, reason = min(gone)
        verdict, words = DEPARTURES.get(reason, (Verdict.GONE, f"gone: {reason}"))
        return Explained(verdict, f"{of_shard}{words}; {_ago(ago_ms)} on {node_id}")
    counts = sorted({hint.shards for hint in asked.hints[block] if hint.shards != asked.shard_count})
    if counts:
        return Explained(Verdict.OTHER_SPLIT, f"stored in {counts[0]} shards, asked for in {asked.shard_count}")
    if asked.unreached:
        return Explained(
            Verdict.UNKNOWN, f"{of_shard}no node that answers knows it; {', '.join(asked.unreached)} did not answer"
        )
    return Explained(
        Verdict.NEVER_STORED, f"{of_shard}no node knows it: never stored, or so long ago that it is forgotten"
    )


def near(
    namespace: types_pb2.Namespace, known: Mapping[str, Sequence[node_pb2.KnownNamespace]]
) -> list[tuple[node_pb2.KnownNamespace, list[str], list[str]]]:
    """Namespaces that hold something, beside what was asked for: with the nodes that know them, and what differs.

    Those that differ least come first; at most NEAR_MAX.
    """
    nodes: dict[bytes, list[str]] = {}
    by_id: dict[bytes, node_pb2.KnownNamespace] = {}
    for node_id, namespaces in sorted(known.items()):
        for each in namespaces:
            by_id[each.namespace_id] = each
            nodes.setdefault(each.namespace_id, []).append(node_id)
    found = [(each, nodes[each.namespace_id], _differs(each.namespace, namespace)) for each in by_id.values()]
    found.sort(key=lambda one: (len(one[2]), one[0].namespace_id))
    return found[:NEAR_MAX]


def _differs(there: types_pb2.Namespace, asked: types_pb2.Namespace) -> list[str]:
    pairs = ((name, getattr(there, name), getattr(asked, name)) for name in _FIELDS)
    return [f"{name}: {_shown(a)} there, {_shown(b)} asked" for name, a, b in pairs if a != b]


def _shown(value: str | bytes) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)


def _tier(tier: int) -> str:
    return types_pb2.Tier.Name(tier).removeprefix("TIER_")  # type: ignore[arg-type]


def _ago(ms: int) -> str:
    return f"{ms / 1000:.0f} s ago"
