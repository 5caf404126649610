"""A small Llama with seeded random weights, and its KV in page pools as vLLM and SGLang hold it.

An `Engine` computes; a `Request` is one sequence of tokens: its page table, and the KV of its first `length` tokens in
the engine's pools. Everything runs on one thread, so that equal calls give equal bits.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from kvstore.blocks.layout import Layout

Tensor = torch.Tensor
LayerDone = Callable[[int], None]


@dataclass(frozen=True)
class Shape:
    """What a model is built from; `seed` gives its weights. `ranks` > 1 splits it over as many processes.

    Small in everything but the heads: one layer of one block has 256 KiB, so that layers travel one by one.
    """

    layers: int = 4
    hidden: int = 256
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 128
    vocab: int = 1024
    seed: int = 1
    dtype: str = "float32"
    page_tokens: int = 16
    rank: int = 0
    ranks: int = 1

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def layout(self) -> Layout:
        """Of this rank's part."""
        return Layout.dense(
            layers=self.layers,
            kv_heads=self.kv_heads // self.ranks,
            head_dim=self.head_dim,
            dtype=self.dtype,
            dtype_bytes=self.torch_dtype.itemsize,
            page_tokens=self.page_tokens,
        )


def build(shape: Shape) -> Any:
    """The model on the CPU; equal shapes give equal weights in every process."""
    torch.manual_seed(shape.seed)
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=2 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=4096,
        # Wide enough that random weights do not repeat one token for ever.
        initializer_range=0.1,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).to(shape.torch_dtype).eval()
    if shape.ranks > 1:
        for layer in model.model.layers:
            _split(layer, shape.rank, shape.ranks)
    return model


def _split(layer: Any, rank: int, ranks: int) -> None:
    """Keeps this rank's heads and feed-forward columns of a decoder layer; the parts are summed over all ranks."""
    attention, feed_forward = layer.self_attn, layer.mlp
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj, feed_forward.gate_proj, feed_forward.up_proj):
        linear.weight.data = linear.weight.data.chunk(ranks, dim=0)[rank].contiguous()
    for linear in (attention.o_proj, feed_forward.down_proj):
        linear.weight.data = linear.weight.data.chunk(ranks, dim=1)[rank].contiguous()
        linear.register_forward_hook(_sum_over_ranks)


def _sum_over_ranks(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
    torch.distributed.all_reduce(output)
    return output


@dataclass
class Request:
    """tokens: all of them. table: its pages. length: how many tokens' KV the pools hold."""

    tokens: list[int]
    table: list[int]
    length: int = 0
    logits: Tensor | None = field(default=None, repr=False)


class Engine:
    """One rank of a model, and pools of pages: K and V per layer, [pages, page tokens, KV heads, head dim]."""

    def __init__(self, shape: Shape, pages: int = 256) -> None:
        torch.set_num_threads(1)
        self.shape, self.layout, self.model = shape, shape.layout, build(shape)
        size = (pages, shape.page_tokens, shape.kv_heads // shape.ranks, shape.head_dim)
        # What nobody wrote is no number, so that a block that was not loaded shows.
        empty = torch.full(size, float("nan"), dtype=shape.torch_dtype)
        self.pools = [(empty.clone(), empty.clone()) for _ in range(shape.layers)]
        # Pages of a request lie scattered, as they do in an engine that has run for a while.
        self._free = torch.randperm(pages, generator=torch.Generator().manual_seed(shape.seed)).tolist()

    def request(self, tokens: Sequence[int], room: int = 0) -> Request:
        """A request without KV yet, with pages for its tokens and `room` more."""
        pages = -(-(len(tokens) + room) // self.shape.page_tokens)
        return Request(list(tokens), [self._free.pop() for _ in range(pages)])

    def grow(self, request: Request, tokens: Sequence[int], length: int) -> None:
        """Gives the request other tokens, and the pages for them, of which the KV is there up to `length`."""
        assert length <= request.length
        assert request.tokens[:length] == list(tokens[:length])
        request.tokens, request.length = list(tokens), length
        while len(request.table) * self.shape.page_tokens < len(tokens):
            request.table.append(self._free.pop())

    def extend(self, request: Request, layer_done: LayerDone | None = None) -> Tensor:
        """Computes all tokens whose KV is not there yet; returns the logits [vocab] that follow the last one.

        layer_done: called with each layer as its KV has reached the pools.
        """
        cache = self._cache(request)
        new = request.tokens[request.length :]
        hooks = [
            layer.register_forward_hook(lambda *_, i=i: self._layer_computed(request, cache, i, layer_done))
            for i, layer in enumerate(self.model.model.layers)
        ]
        try:
            with torch.inference_mode():
                # By position: the argument's name is `past_key_values` before transformers 5.24 and `cache` since.
                out = self.model(torch.tensor([new]), None, None, cache, use_cache=True, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        request.length = len(request.tokens)
        request.logits = out.logits[0, -1]
        return request.logits

    def generate(self, request: Request, count: int, first: int | None = None) -> list[int]:
        """Appends `count` tokens greedily, one step each, and computes their KV.

        first: the first of them where another engine computed the prompt; else it follows from the logits.
        """
        made: list[int] = []
        while len(made) < count:
            if first is None:
                assert request.logits is not None
                first = int(request.logits.argmax())
            made.append(first)
            request.tokens.append(first)
            self.extend(request)
            first = None
        return made

    def digest(self, request: Request, tokens: int | None = None) -> str:
        """A hash over the KV of the first `tokens` tokens, to the bit."""
        digest = hashlib.sha256()
        for layer in range(self.shape.layers):
            for part in self._read(request, layer, request.length if tokens is None else tokens):
                digest.update(part.contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def _cache(self, request: Request) -> Any:
        cache = transformers.DynamicCache()
        if request.length:
            for layer in range(self.shape.layers):
                keys, values = self._read(request, layer, request.length)
                cache.update(keys.transpose(0, 1)[None], values.transpose(0, 1)[None], layer)
        return cache

    def _layer_computed(self, request: Request, cache: Any, layer: int, layer_done: LayerDone | None) -> None:
        places = self._places(request, request.length, len(request.tokens))
        for pool, computed in zip(
            self.pools[layer], (cache.layers[layer].keys, cache.layers[layer].values), strict=True
        ):
            pool.flatten(0, 1)[places] = computed[0, :, request.length :].transpose(0, 1)
        if layer_done is not None:
            layer_done(layer)

    def _read(self, request: Request, layer: int, tokens: int) -> list[Tensor]:
        places = self._places(request, 0, tokens)
        return [pool.flatten(0, 1)[places] for pool in self.pools[layer]]

    def _places(self, request: Request, start: int, stop: int) -> Tensor:
        positions = torch.arange(start, stop)
        pages = torch.tensor(request.table)[positions // self.shape.page_tokens]
        return pages * self.shape.page_tokens + positions % self.shape.page_tokens
