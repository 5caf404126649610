"""How fast an inference engine is: prefill and decode as small tables, and what arithmetic says of them. Pure.

Named engines are nodes of eight GPUs (989 dense TFLOPS each in bfloat16, H800 or H100) of which prefill uses 40 %. Per
token a model computes 2 × its active parameters, and 4 × layers × heads × head dimension for every token of context
that it attends to; a sparse one looks for those with an indexer, at 2 × layers × its heads × their dimension for every
token of context. Decode is bound by memory and by the batch: its table is an assumption.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from kvstore.errors import InvalidInput
from kvstore.policy.recompute import Prefill, Speed

_NODE_FLOPS = 8 * 989e12
_USED = 0.4
_CONTEXTS = (0, 8_192, 16_384, 32_768, 65_536, 131_072)
_STEP_TOKENS = 64
"""Of the sum over a prompt's tokens."""
Pairs = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class EngineModel:
    """token_bytes: KV of a token. prefill, decode: (tokens of context, tokens per second), decode's of one sequence.

    token_flops: per computed token; 0: not known. context_flops: per token that it attends to, sparse_tokens at most
    (0: its whole context). index_flops: per token of the whole context.
    """

    name: str
    token_bytes: int
    prefill: Pairs
    decode: Pairs
    token_flops: float = 0.0
    context_flops: float = 0.0
    sparse_tokens: int = 0
    index_flops: float = 0.0

    def __post_init__(self) -> None:
        for speed in (self.prefill, self.decode):
            Prefill.of(speed)
        if self.token_bytes < 1:
            raise InvalidInput(f"engine {self.name}: token_bytes must be positive")

    def prefill_s(self, first: int, last: int) -> float:
        """To compute the tokens first … last - 1 of a prompt, with all before them in the cache."""
        return _seconds(self.prefill, first, last)

    def decode_s(self, first: int, last: int) -> float:
        """To generate the tokens first … last - 1 of a sequence, one after the other."""
        return _seconds(self.decode, first, last)

    def flops(self, first: int, last: int) -> float:
        """Of the tokens first … last - 1."""
        context = (first + last) / 2
        attended = min(context, self.sparse_tokens or context)
        return (last - first) * (self.token_flops + self.context_flops * attended + self.index_flops * context)

    def slowed(self, factor: float) -> Self:
        """The same engine with prefill so many times slower."""
        return replace(self, prefill=tuple((at, speed / factor) for at, speed in self.prefill))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Raises InvalidInput."""
        try:
            known: dict[str, Any] = {**fields}
            for name in ("prefill", "decode"):
                known[name] = _pairs(known[name])
            return cls(**known)
        except (TypeError, KeyError, ValueError) as error:
            raise InvalidInput(f"engine: name, token_bytes, prefill and decode are needed: {error!r}") from error


def _pairs(speed: Speed) -> Pairs:
    found = Prefill.of(speed)
    return tuple(zip(found.contexts, found.tokens_per_s, strict=True))


def _seconds(speed: Pairs, first: int, last: int) -> float:
    if last <= first:
        return 0.0
    edges = np.append(np.arange(first, last, _STEP_TOKENS), last).astype(np.float64)
    middles = (edges[:-1] + edges[1:]) / 2
    contexts, tokens_per_s = zip(*speed, strict=True)
    return float((np.diff(edges) / np.interp(middles, contexts, tokens_per_s)).sum())


def _engine(
    name: str,
    token_bytes: int,
    active: float,
    attention: float,
    sparse_tokens: int = 0,
    index: float = 0.0,
) -> EngineModel:
    """attention: layers × heads × the dimensions of a score and a value, halved. index: layers × heads × dimension."""
    shape = EngineModel(
        name,
        token_bytes,
        prefill=((0, 1.0),),
        decode=_DECODE,
        token_flops=2 * active,
        context_flops=4 * attention,
        sparse_tokens=sparse_tokens,
        index_flops=2 * index,
    )
    speed = tuple((context, round(_NODE_FLOPS * _USED / shape.flops(context, context + 1), 1)) for context in _CONTEXTS)
    return replace(shape, prefill=speed)


_DECODE = ((0, 90.0), (32_768, 50.0), (65_536, 35.0))
"""20 ms a token at 32k tokens of context, in a batch of some dozens."""

ENGINES: Mapping[str, EngineModel] = {
    engine.name: engine
    for engine in (
        _engine("qwen2.5-32b", 64 * 2 * 8 * 128 * 2, 32.5e9, 64 * 40 * 128),
        _engine("llama-3.1-70b", 80 * 2 * 8 * 128 * 2, 70.6e9, 80 * 64 * 128),
        _engine("llama-3.1-8b", 32 * 2 * 8 * 128 * 2, 8.0e9, 32 * 32 * 128),
        # 37 of 671 billion parameters are active; a token attends to 2,048 others, which an indexer chooses. Its latent
        # in eight bits: 512 + 16 of scales + 2 × 64 of RoPE key, per layer.
        _engine("deepseek-v3.2", 61 * 656, 37e9, 61 * 128 * (576 + 512) / 2, 2048, 61 * 64 * 128),
    )
}


def chosen(name: str) -> EngineModel:
    """A named engine, or the one that a JSON file describes. Raises InvalidInput."""
    if name.lower() in ENGINES:
        return ENGINES[name.lower()]
    path = Path(name)
    if path.suffix != ".json":
        raise InvalidInput(f"--engine: {name!r} is neither a .json file nor one of {', '.join(ENGINES)}")
    try:
        fields = json.loads(path.read_text())
    except OSError as error:
        raise InvalidInput(f"--engine {name}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInput(f"--engine {name}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidInput(f"--engine {name}: an object is needed")
    return EngineModel.from_fields(fields)
