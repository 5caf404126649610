"""The table of models against what their published dimensions come to."""

import argparse

import pytest

from kvbench import models, options
from kvbench.models import MODELS

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


def test_a_model_stands_in_for_sizes() -> None:
    """Its layout, not one that merely has as many bytes."""
    assert options.layouts([4096], MODELS["deepseek-v3"]) == {4_497_408: MODELS["deepseek-v3"].layout}
    assert [*options.layouts([4096, 1 << 20], None)] == [4096, 1 << 20]
