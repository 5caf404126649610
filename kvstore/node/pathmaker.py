"""Makes the paths of one load that lead to other nodes: to owners, and through helpers."""

from collections.abc import Mapping, Sequence

from kvstore.blocks.layout import Layout
from kvstore.errors import InvalidInput
from kvstore.node.incoming import Incoming
from kvstore.node.landers import PieceLander
from kvstore.node.networks import COMPUTE
from kvstore.node.paths import NodePath
from kvstore.node.resources import Resources
from kvstore.node.routing import network_to, owners_of, question
from kvstore.pb import node_pb2, types_pb2
from kvstore.policy.route import Plan, plan
from kvstore.rpc.channel import caller


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
        self._owners = owners_of(start, count, resources.address.node_id)

    def to_owners(self, absent: set[int]) -> list[NodePath]:
        """Who may have some of these blocks: by the caller's hint, or the ticket's node for all of them."""
        if self._start.ticket:
            return [self._path("peer", COMPUTE, self._start.nodes[0], sorted(absent), tail=self._start.tail)]
        paths = []
        for node, blocks in self._owners.items():
            wanted = [block for block in blocks if block in absent]
            if wanted:
                network, route = network_to(self._start.nodes[node], self._resources.networks)
                paths.append(self._path(route, network, self._start.nodes[node], wanted))
        return paths

    def route(self, direct: Mapping[str, Sequence[int]]) -> Plan | None:
        """Whose storage NICs to use beside our own, for blocks that lie at these storage nodes. None: for nothing."""
        length = sum(map(len, direct.values())) * self._layout.block_bytes
        if not length:
            return None
        config, networks = self._resources.config, self._resources.networks
        apart = {self._resources.address.node_id, *direct}
        helpers = self._start.helpers if config.relay else []
        return plan(question(length, networks, helpers, apart, config.piece_bytes, config.relay_helpers_max))

    def through(self, helpers: Sequence[str], direct: Mapping[str, Sequence[int]]) -> list[NodePath]:
        """The paths through these helpers to these storage nodes."""
        by_name = {helper.node.node_id: helper.node for helper in self._start.helpers}
        owners = {node.node_id: node for node in self._start.nodes}
        return [
            self._path("relay", COMPUTE, by_name[name], blocks, relay_from=owners[owner])
            for name in helpers
            for owner, blocks in direct.items()
            if blocks
        ]

    def _path(
        self,
        route: str,
        network: str,
        node: types_pb2.NodeAddress,
        blocks: Sequence[int],
        *,
        tail: bool = False,
        relay_from: types_pb2.NodeAddress | None = None,
    ) -> NodePath:
        resources, start = self._resources, self._start
        wanted = bytearray(self._keys)
        for block in blocks:
            if block < self._count:
                wanted[start.first + block] = 1
        opened = node_pb2.TransferOpen(
            caller=caller(f"node {resources.address.node_id}"),
            reader_node_id=resources.address.node_id,
            namespace_id=start.namespace_id,
            shard_rank=start.shard_rank,
            shard_count=start.shard_count,
            keys=start.keys,
            wanted=bytes(wanted),
            ticket=start.ticket,
            tail=tail,
            deadline_ms=start.deadline_ms,
            relay_from=relay_from,
            keep=relay_from is not None and node.node_id == start.keep_at,
        )
        incoming = Incoming(
            resources.config,
            resources.custody,
            PieceLander(resources.landing, self._tenant),
            resources.networks,
            network,
            node.grpc,
            resources.neighbours.stub(node.grpc),
            self._layout,
        )
        return NodePath(route, node.node_id, blocks, opened, incoming)
