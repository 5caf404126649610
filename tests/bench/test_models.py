"""The table of models against what their published dimensions come to."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench import models, options
from kvbench.cli import main
from kvbench.layouts import layout_of
from kvbench.models import MODELS
from kvstore.blocks.layout import GRANULE_BYTES_MAX

KIB = 1024


@pytest.mark.parametrize(
    ("name", "token_bytes"),
    [
        ("llama-2-70b", 320 * KIB),
        ("llama-3.1-8b", 128 * KIB),
        ("llama-3.1-70b", 320 * KIB),
        ("llama-3.1-405b", 504 * KIB),
        ("mistral-7b", 128 * KIB),
        ("qwen2.5-7b", 56 * KIB),
        ("qwen2.5-32b", 256 * KIB),
        ("qwen3-235b-a22b", 188 * KIB),
        ("deepseek-v3", 70_272),
    ],
)
def test_bytes_of_a_token_are_those_that_are_published(name: str, token_bytes: int) -> None:
    """Known independently of the table's dimensions."""
    assert MODELS[name].token_bytes == token_bytes


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_a_layout_has_the_bytes_of_its_tokens(model: models.Model) -> None:
    """Layers, granules and pages of the layout come to the bytes per token of the table."""
    layout = model.layout
    assert layout.block_bytes == model.token_bytes * layout.block_tokens
    assert layout.layers == model.layers
    assert model.source


def test_models_are_named_in_whatever_case() -> None:
    """An unknown one is refused with those that there are."""
    assert models.named("Llama-2-70B") is MODELS["llama-2-70b"]
    with pytest.raises(argparse.ArgumentTypeError, match="deepseek-v3"):
        models.named("gpt-2")


@given(st.integers(1, 2**25) | st.sampled_from([model.layout.block_bytes // 2 for model in MODELS.values()]))
def test_blocks_are_exactly_as_large_as_asked_for(half_bytes: int) -> None:
    """Benches that know a model by the bytes of its blocks alone move each of them; whole granules are layers."""
    layout = layout_of(2 * half_bytes)
    assert layout.block_bytes == 2 * half_bytes
    assert layout.layers <= max(1, 2 * half_bytes // GRANULE_BYTES_MAX)
    assert layout_of(64 * GRANULE_BYTES_MAX).layers == 64


@pytest.mark.parametrize("bench", ["transfer", "peers"])
def test_sizes_that_no_block_has(bench: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys and values are equally large; it is refused before a process is started."""
    for size in ("1001", "0"):
        assert main([bench, "--sizes", size]) == 2
        assert "--sizes" in capsys.readouterr().err


def test_a_model_stands_in_for_sizes() -> None:
    """Its layout, not one that merely has as many bytes."""
    assert options.layouts([4096], MODELS["deepseek-v3"]) == {4_497_408: MODELS["deepseek-v3"].layout}
    assert [*options.layouts([4096, 1 << 20], None)] == [4096, 1 << 20]
