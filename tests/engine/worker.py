"""An engine in a process of its own: one JSON object per line in, events and one result per line out.

A worker may hold several engines (models, or ranks of them), each with its own client. What is extended with a `ticket`
is handed over while it is computed: each layer as soon as its KV is in the pools.
"""

import json
import os
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from llama import Engine, Request, Shape

from kvstore.blocks.namespace import Namespace
from kvstore.client import Client, buffers

Reply = dict[str, Any]


@dataclass
class Opened:
    engine: Engine
    client: Client | None
    requests: dict[str, Request] = field(default_factory=dict)

    @property
    def store(self) -> Client:
        assert self.client is not None
        return self.client

    def buffers(self, request: Request) -> buffers.KVBuffers:
        return buffers.paged(self.engine.pools, request.table, self.engine.layout)


class Worker:
    def __init__(self, lines_in: Any, lines_out: Any) -> None:
        self._in, self._out = lines_in, lines_out
        self._opened: dict[str, Opened] = {}

    def run(self) -> None:
        for line in self._in:
            fields = json.loads(line)
            try:
                result = getattr(self, "do_" + fields.pop("do"))(**fields)
                self._say(result=result)
            except Exception as error:
                self._say(error=f"{type(error).__name__}: {error}")
        for opened in self._opened.values():
            if opened.client is not None:
                opened.client.close()

    def _say(self, **fields: Any) -> None:
        self._out.write(json.dumps(fields) + "\n")
        self._out.flush()

    def _find(self, engine: str, name: str) -> tuple[Opened, Request]:
        return self._opened[engine], self._opened[engine].requests[name]

    # ---- engines and requests --------------------------------------------------------------------------------------

    def do_open(
        self,
        engine: str,
        shape: Reply,
        node: str = "",
        model: str = "",
        rendezvous: str = "",
        ttl_s: float | None = None,
    ) -> Reply:
        built = Shape(**shape)
        if built.ranks > 1:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{rendezvous}", rank=built.rank, world_size=built.ranks
            )
        client = None
        if node:
            client = Client.connect(
                node=node,
                namespace=Namespace.of(model, built.layout),
                layout=built.layout,
                shard=(built.rank, built.ranks),
            )
        self._opened[engine] = Opened(Engine(built), client)
        return {}

    def do_request(self, engine: str, name: str, tokens: list[int], room: int = 0) -> Reply:
        opened = self._opened[engine]
        opened.requests[name] = opened.engine.request(tokens, room)
        return {}

    def do_extend(
        self, engine: str, name: str, ticket: str = "", extra: str = "", pause_after: int | None = None
    ) -> Reply:
        """Computes what is missing. With `pause_after`, says so after that layer and goes on at the next line."""
        opened, request = self._find(engine, name)
        if not ticket:
            return {"logits": _hex(opened.engine.extend(request))}
        chain = opened.store.chain(request.tokens, extra.encode())
        writer = opened.store.send(ticket, opened.buffers(request), chain)

        def layer_done(layer: int) -> None:
            writer.write_layer(layer)
            if layer == pause_after:
                self._say(event="paused")
                self._in.readline()

        logits = opened.engine.extend(request, layer_done)
        return {"logits": _hex(logits), "first": int(logits.argmax()), "stored": writer.commit().stored}

    def do_generate(self, engine: str, name: str, count: int, first: int | None = None) -> Reply:
        opened, request = self._find(engine, name)
        return {"tokens": opened.engine.generate(request, count, first)}

    def do_digest(self, engine: str, name: str, tokens: int | None = None) -> Reply:
        opened, request = self._find(engine, name)
        return {"digest": opened.engine.digest(request, tokens)}

    def do_rewind(self, engine: str, name: str, tokens: list[int], length: int) -> Reply:
        """Makes the request one of other tokens whose KV is there up to `length`."""
        opened, request = self._find(engine, name)
        opened.engine.grow(request, tokens, length)
        return {}

    # ---- the store -------------------------------------------------------------------------------------------------

    def do_offer(self, engine: str, tokens: list[int]) -> Reply:
        opened = self._opened[engine]
        return {"ticket": opened.store.offer(opened.store.chain(tokens))}

    def do_receive(self, engine: str, name: str, ticket: str) -> Reply:
        opened, request = self._find(engine, name)
        load = opened.store.receive(ticket, opened.buffers(request), request.tokens, group_layers=1)
        return self._follow(load, request)

    def do_match(self, engine: str, tokens: list[int], extra: str = "") -> Reply:
        opened = self._opened[engine]
        return {"blocks": opened.store.match(opened.store.chain(tokens, extra.encode())).blocks}

    def do_load(self, engine: str, name: str, extra: str = "", unmatched: bool = False) -> Reply:
        """Loads what a match finds; `unmatched`: asks for the whole chain, whatever a match would say."""
        opened, request = self._find(engine, name)
        chain = opened.store.chain(request.tokens, extra.encode())
        found = chain if unmatched else opened.store.match(chain)
        return self._follow(opened.store.load(found, opened.buffers(request)), request)

    def do_store(self, engine: str, name: str, extra: str = "") -> Reply:
        opened, request = self._find(engine, name)
        stored = opened.store.store(
            opened.store.chain(request.tokens[: request.length], extra.encode()), opened.buffers(request)
        )
        return {"stored": stored.stored, "present": stored.present, "refused": stored.refused}

    def _follow(self, load: Any, request: Request) -> Reply:
        for group in load:
            self._say(event="layers", first=group.first_layer, layers=group.layers)
        result = load.result()
        request.length = result.tokens
        return {
            "blocks": result.blocks,
            "tokens": result.tokens,
            "tail": result.tail,
            "missing": [missing.outcome.name for missing in result.missing],
            "nodes": sorted({source.node_id for source in result.sources}),
        }


def _hex(logits: torch.Tensor) -> str:
    return logits.float().numpy().tobytes().hex()


if __name__ == "__main__":
    # Whatever a library prints must not get between the lines.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    Worker(sys.stdin, out).run()
