"""Public models, and how many bytes of KV a token of theirs has: a table, and `kvbench models`, which shows it.

Bytes per token: layers × 2 (K and V) × KV heads × head dimension × bytes of the type; with latent attention (MLA)
layers × (rank of the latent + dimension of the decoupled RoPE key) × bytes. The dimensions are those of the models'
published `config.json`.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvbench import result
from kvbench.result import Result
from kvstore.blocks.layout import BLOCK_TOKENS, LayerGroup, Layout

_PAGE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Model:
    """kv_heads, head_dim: of models with separate K and V. latent_dim: of those with latent attention; 0: none."""

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    source: str
    latent_dim: int = 0
    dtype: str = "bfloat16"
    dtype_bytes: int = 2

    @property
    def layer_token_bytes(self) -> int:
        return (self.latent_dim or 2 * self.kv_heads * self.head_dim) * self.dtype_bytes

    @property
    def token_bytes(self) -> int:
        return self.layers * self.layer_token_bytes

    @property
    def layout(self) -> Layout:
        """Of the whole model on one rank."""
        if not self.latent_dim:
            return Layout.dense(
                layers=self.layers,
                kv_heads=self.kv_heads,
                head_dim=self.head_dim,
                dtype=self.dtype,
                dtype_bytes=self.dtype_bytes,
            )
        page_bytes = _PAGE_TOKENS * self.layer_token_bytes
        return Layout((LayerGroup(self.layers, _PAGE_TOKENS, page_bytes, self.dtype, tensors=1, packing="latent"),))


def _hub(name: str) -> str:
    return f"config.json of {name}"


MODELS: Mapping[str, Model] = {
    model.name: model
    for model in (
        Model("llama-2-70b", 80, 8, 128, _hub("meta-llama/Llama-2-70b-hf")),
        Model("llama-3.1-8b", 32, 8, 128, _hub("meta-llama/Llama-3.1-8B")),
        Model("llama-3.1-70b", 80, 8, 128, _hub("meta-llama/Llama-3.1-70B")),
        Model("llama-3.1-405b", 126, 8, 128, _hub("meta-llama/Llama-3.1-405B")),
        Model("mistral-7b", 32, 8, 128, _hub("mistralai/Mistral-7B-v0.3")),
        Model("mixtral-8x7b", 32, 8, 128, _hub("mistralai/Mixtral-8x7B-v0.1")),
        Model("mistral-large-123b", 88, 8, 128, _hub("mistralai/Mistral-Large-Instruct-2407")),
        Model("qwen2.5-7b", 28, 4, 128, _hub("Qwen/Qwen2.5-7B")),
        Model("qwen2.5-32b", 64, 8, 128, _hub("Qwen/Qwen2.5-32B")),
        Model("qwen2.5-72b", 80, 8, 128, _hub("Qwen/Qwen2.5-72B")),
        Model("qwen3-8b", 36, 8, 128, _hub("Qwen/Qwen3-8B")),
        Model("qwen3-32b", 64, 8, 128, _hub("Qwen/Qwen3-32B")),
        Model("qwen3-235b-a22b", 94, 4, 128, _hub("Qwen/Qwen3-235B-A22B")),
        # kv_lora_rank 512 + qk_rope_head_dim 64.
        Model("deepseek-v3", 61, 0, 0, _hub("deepseek-ai/DeepSeek-V3"), latent_dim=576),
        Model("deepseek-v2-lite", 27, 0, 0, _hub("deepseek-ai/DeepSeek-V2-Lite"), latent_dim=576),
        Model("kimi-k2", 61, 0, 0, _hub("moonshotai/Kimi-K2-Instruct"), latent_dim=576),
    )
}


def named(name: str) -> Model:
    """As argparse wants it: by its name, in whatever case. Raises ArgumentTypeError."""
    found = MODELS.get(name.lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(MODELS)}")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(args: argparse.Namespace) -> Result:
    return result.of_this_machine(
        "models",
        settings={"block_tokens": BLOCK_TOKENS},
        keys=("model",),
        measurements=[_row(model) for model in MODELS.values()],
        ratios={},
    )


def _row(model: Model) -> dict[str, Any]:
    return {
        "model": model.name,
        "layers": model.layers,
        "kv_heads": model.kv_heads or "latent",
        "head_dim": model.head_dim or model.latent_dim,
        "dtype": model.dtype,
        "token_bytes": model.token_bytes,
        "block_bytes": model.token_bytes * BLOCK_TOKENS,
        "source": model.source,
    }
