"""Makes the paths of one load that lead to other nodes: to owners, and through helpers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from kvstore.blocks.layout import Layout
from kvstore.errors import InvalidInput
from kvstore.node.disklane import DiskLane
from kvstore.node.incoming import Incoming
from kvstore.node.landers import PieceLander
from kvstore.node.lanes import Meter
from kvstore.node.networks import COMPUTE
from kvstore.node.paths import NodePath
from kvstore.node.portion import Portion
from kvstore.node.resources import Resources
from kvstore.node.routing import network_to, owners_of, question
from kvstore.node.shared import SharedDevices
from kvstore.node.sharedincoming import SharedIncoming
from kvstore.pb import node_pb2, types_pb2
from kvstore.policy.route import Plan, plan
from kvstore.rpc.channel import caller
from kvstore.rpc.layouts import layout_message


class Direct(NamedTuple):
    """Blocks that can be read over this node's own storage NIC. shared: from a directory, not from the node. lanes:
    those that the node sends over."""

    node_id: str
    blocks: Sequence[int]
    shared: bool
    lanes: Sequence[types_pb2.LaneLoad] = ()


class PathMaker:
    """Belongs to one load. count: of its full blocks; the tail, if any, is block `count`."""

    def __init__(
        self, resources: Resources, tenant: str, start: node_pb2.LoadStart, layout: Layout, keys: int, count: int
    ) -> None:
        if start.ticket and not start.nodes:
            raise InvalidInput("load: a ticket needs its node")
        self._resources = resources
        self._tenant = tenant
        self._start = start
        self._layout = layout
        self._keys = keys
        self._count = count
        self._portions: dict[str, Portion] = {}
        self._owners = owners_of(start, count, resources.address.node_id)

    def to_owners(self, absent: set[int]) -> list[NodePath]:
        """Who may have some of these blocks: by the caller's hint, or the ticket's node for all of them."""
        if self._start.ticket:
            return [self._path("peer", COMPUTE, self._start.nodes[0], sorted(absent), tail=self._start.tail)]
        paths = []
        for node, blocks in self._owners.items():
            wanted = [block for block in blocks if block in absent]
            if wanted:
                owner = self._start.nodes[node]
                network, route = network_to(owner, self._resources.networks)
                paths.append(self._path(route, network, owner, wanted))
                if owner.shared and self._resources.shared is not None:
                    paths.append(self._shared_path(self._resources.shared, owner, wanted))
        return paths

    def route(self, direct: Sequence[Direct]) -> Plan | None:
        """Whose storage NICs to use beside our own for what lies in storage. None: for nothing."""
        length = len({block for way in direct for block in way.blocks}) * self._layout.block_bytes
        if not length:
            return None
        config, resources, apart = self._resources.config, self._resources, self._apart(direct)
        now_ns = resources.custody.clock()
        helpers = [resources.heard.fresher(helper, now_ns) for helper in self._start.helpers if config.relay]
        shared = resources.shared.lane if resources.shared is not None and all(way.shared for way in direct) else None
        asked = question(
            length,
            resources.networks,
            shared,
            helpers,
            apart,
            config.piece_bytes,
            config.relay_helpers_max,
            _storage_bytes_per_s(direct),
        )
        return plan(asked)

    def any_helpers(self, direct: Sequence[Direct]) -> list[str]:
        """Helpers for what this node cannot reach itself: as many as may join, in the order of the match."""
        config, apart = self._resources.config, self._apart(direct)
        names = [helper.node.node_id for helper in self._start.helpers if config.relay]
        return [name for name in names if name not in apart][: config.relay_helpers_max]

    def _apart(self, direct: Sequence[Direct]) -> set[str]:
        return {self._resources.address.node_id, *(way.node_id for way in direct)}

    def through(self, helpers: Sequence[str], direct: Sequence[Direct]) -> list[NodePath]:
        """The paths through these helpers to what lies in storage."""
        by_name = {helper.node.node_id: helper.node for helper in self._start.helpers}
        owners = {node.node_id: node for node in self._start.nodes}
        return [
            self._path(
                "relay", COMPUTE, by_name[name], way.blocks, relay_from=owners[way.node_id], relay_shared=way.shared
            )
            for name in helpers
            for way in direct
            if way.blocks and (by_name[name].shared or not way.shared)
        ]

    def _shared_path(self, shared: SharedDevices, owner: types_pb2.NodeAddress, blocks: Sequence[int]) -> NodePath:
        resources = self._resources
        incoming = SharedIncoming(
            resources.config,
            resources.custody,
            PieceLander(resources.landing, self._tenant),
            shared,
            resources.neighbours.stub(owner.grpc),
            self._layout,
            resources.address.node_id,
            self._portion(shared.lane),
        )
        return NodePath("direct", owner.node_id, blocks, self._opened(blocks), incoming, shared=True)

    def _path(
        self,
        route: str,
        network: str,
        node: types_pb2.NodeAddress,
        blocks: Sequence[int],
        *,
        tail: bool = False,
        relay_from: types_pb2.NodeAddress | None = None,
        relay_shared: bool = False,
    ) -> NodePath:
        resources = self._resources
        opened = self._opened(blocks)
        opened.tail = tail
        if relay_from is not None:
            opened.relay_from.CopyFrom(relay_from)
            opened.keep = node.node_id == self._start.keep_at
            if relay_shared:
                opened.shared_layout.CopyFrom(layout_message(self._layout))

        def made(again: Callable[[], NodePath] | None) -> NodePath:
            incoming = Incoming(
                resources.config,
                resources.custody,
                PieceLander(resources.landing, self._tenant),
                resources.networks,
                network,
                node.grpc,
                resources.neighbours.stub(node.grpc),
                self._layout,
                self._portion(resources.networks.meter(network)),
            )
            return NodePath(route, node.node_id, blocks, opened, incoming, again=again)

        return made(None if self._start.ticket else partial(made, None))  # a ticket is taken once

    def _portion(self, way: Meter | DiskLane) -> Portion:
        """This load's of a NIC or disk: one for all its paths that come over it."""
        return self._portions.setdefault(way.name, Portion(way))

    def _opened(self, blocks: Sequence[int]) -> node_pb2.TransferOpen:
        resources, start = self._resources, self._start
        wanted = bytearray(self._keys)
        for block in blocks:
            if block < self._count:
                wanted[start.first + block] = 1
        return node_pb2.TransferOpen(
            caller=caller(f"node {resources.address.node_id}"),
            reader_node_id=resources.address.node_id,
            namespace_id=start.namespace_id,
            shard_rank=start.shard_rank,
            shard_count=start.shard_count,
            keys=start.keys,
            wanted=bytes(wanted),
            ticket=start.ticket,
            deadline_ms=start.deadline_ms,
        )


def _storage_bytes_per_s(direct: Sequence[Direct]) -> float:
    """What the storage nodes' NICs are said to carry, together. 0: of one it is not known. What was measured there
    tells what readers took, not what it could give."""
    nominal = {way.node_id: [lane.nominal_bytes_per_s for lane in way.lanes] for way in direct if way.blocks}
    known = all(not way.shared for way in direct) and all(rates and all(rates) for rates in nominal.values())
    return float(sum(min(rates) for rates in nominal.values())) if known else 0.0
