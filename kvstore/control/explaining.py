"""Where the blocks of a prefix are by the index, and what the nodes say of them."""

from kvstore.blocks.keys import KEY_BYTES
from kvstore.control import wire
from kvstore.control.asking import NODE_CALLER, NODE_DEADLINE_S, Asking
from kvstore.control.directory import Directory
from kvstore.control.explain import Asked, Hint, near, verdicts
from kvstore.control.index.base import Index
from kvstore.control.prefix import answer
from kvstore.errors import InvalidInput, KVStoreError, TooLarge
from kvstore.pb import admin_pb2, node_pb2, types_pb2
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX

LISTED_LOCATIONS_MAX = 100_000


class Explaining:
    """Belongs to the event loop; changes nothing."""

    def __init__(self, index: Index, directory: Directory, asking: Asking) -> None:
        self._index = index
        self._directory = directory
        self._asking = asking

    async def located(self, keys: bytes, blocks: int, now_ms: int) -> list[admin_pb2.BlockLocations]:
        """One entry per key. Raises TooLarge for more locations than can be listed."""
        found = await self._index.lookup(keys, prefix=False)
        if len(found) > LISTED_LOCATIONS_MAX:
            raise TooLarge(f"{len(found)} locations are more than {LISTED_LOCATIONS_MAX}; ask for fewer blocks")
        listed = [admin_pb2.BlockLocations(key=keys[i * KEY_BYTES : (i + 1) * KEY_BYTES]) for i in range(blocks)]
        columns = zip(
            found.block.tolist(), found.entries.tolist(), found.tier.tolist(), found.deadline_ms.tolist(), strict=True
        )
        for block, (ref, rank, count, _), tier, deadline_ms in columns:
            state = self._directory.by_ref(ref)
            listed[block].locations.add(
                node_id=state.address.node_id if state is not None else "",
                alive=self._directory.answerable(ref, now_ms),
                tier=tier,
                shard=types_pb2.Shard(rank=rank, count=count),
                remaining_ms=min(max(0, deadline_ms - now_ms), 2**32 - 1),
            )
        return listed

    async def explain(self, request: admin_pb2.ExplainPrefixRequest, now_ms: int) -> admin_pb2.ExplainPrefixReply:
        """Raises InvalidInput and TooLarge."""
        if request.namespace_id:
            wire.check_namespace(request.namespace_id)
        blocks, shards = wire.check_keys(request.keys), wire.check_shard_count(request.shard_count)
        if blocks == 0:
            raise InvalidInput("keys: at least one is needed")
        if blocks * shards > KEYS_PER_MESSAGE_MAX:
            raise TooLarge(f"explain: {blocks} keys in {shards} shards are more than {KEYS_PER_MESSAGE_MAX}")
        asked = node_pb2.ExplainRequest(
            caller=NODE_CALLER,
            namespace_id=request.namespace_id,
            shard_count=shards,
            keys=request.keys,
            namespaces=request.HasField("namespace"),
        )
        answers = await self._asking.all(lambda stub: stub.Explain(asked, timeout=NODE_DEADLINE_S))
        reached = {name: reply for name, reply in answers.items() if not isinstance(reply, KVStoreError)}
        silent = {name: str(reply) for name, reply in answers.items() if isinstance(reply, KVStoreError)}
        located = await self.located(request.keys, blocks, now_ms)
        matched = await self._matched(request.keys, blocks, shards, now_ms)
        found = verdicts(
            Asked(
                blocks,
                shards,
                matched,
                [[_hint(place) for place in block.locations if place.remaining_ms] for block in located],
                {name: reply.keys for name, reply in reached.items()},
                sorted(silent),
            )
        )
        explained = [
            admin_pb2.ExplainedBlock(key=block.key, verdict=each.verdict, text=each.text, locations=block.locations)
            for block, each in zip(located, found, strict=True)
        ]
        return admin_pb2.ExplainPrefixReply(
            matched_blocks=matched,
            blocks=explained,
            near=[
                admin_pb2.NearNamespace(
                    namespace_id=other.namespace_id,
                    namespace=other.namespace,
                    block_tokens=other.block_tokens,
                    nodes=nodes,
                    differs=differs,
                )
                for other, nodes, differs in near(
                    request.namespace, {name: reply.namespaces for name, reply in reached.items()}
                )
            ],
            unreached=[admin_pb2.NodeReached(node_id=name, error=error) for name, error in sorted(silent.items())],
        )

    async def _matched(self, keys: bytes, blocks: int, shards: int, now_ms: int) -> int:
        """What a match would say."""
        found = await self._index.lookup(keys, prefix=True)
        return answer(found, blocks, shards, lambda ref: self._directory.answerable(ref, now_ms), now_ms).blocks


def _hint(place: admin_pb2.BlockLocation) -> Hint:
    return Hint(place.node_id, place.alive, place.shard.rank, place.shard.count)
