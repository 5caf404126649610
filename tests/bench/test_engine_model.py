"""An engine's speed as a table, and the arithmetic of the named ones."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench import engine_model
from kvbench.engine_model import ENGINES, EngineModel
from kvbench.workload import SHAPES
from kvstore.errors import InvalidInput

FLAT = EngineModel("flat", 1024, ((0, 1000.0),), ((0, 50.0),))


@given(
    name=st.sampled_from(sorted(ENGINES)),
    cuts=st.tuples(*[st.integers(0, 70_000)] * 3).map(sorted),
    factor=st.floats(0.5, 10),
)
def test_time_adds_up_over_a_prompt(name: str, cuts: list[int], factor: float) -> None:
    """Two halves take as long as the whole, a longer context is no faster, a slower engine is so many times slower."""
    engine, (first, middle, last) = ENGINES[name], cuts
    whole = engine.prefill_s(first, last)
    assert engine.prefill_s(first, middle) + engine.prefill_s(middle, last) == pytest.approx(whole, rel=1e-3, abs=1e-9)
    assert engine.prefill_s(first + 4096, last + 4096) >= whole * (1 - 1e-9)
    assert engine.slowed(factor).prefill_s(first, last) == pytest.approx(whole * factor, abs=1e-9)
    assert engine.slowed(factor).decode == engine.decode
    assert EngineModel.from_fields(json.loads(engine.to_json())) == engine


def test_a_flat_table_is_a_division() -> None:
    """1,000 tokens per second: 500 tokens take half a second, none take none."""
    assert FLAT.prefill_s(100, 600) == pytest.approx(0.5)
    assert FLAT.decode_s(100, 150) == pytest.approx(1.0)
    assert FLAT.prefill_s(7, 7) == 0.0
    assert FLAT.flops(0, 100) == 0.0


@pytest.mark.parametrize(("name", "least", "most"), [("deepseek-v3.2", 13, 36), ("qwen2.5-32b", 117, 267)])
def test_cache_compute_ratios_are_the_papers(name: str, least: float, most: float) -> None:
    """GB loaded per PFLOP computed, from 16k to 64k tokens of context with the 64k shape's mean of new ones."""
    engine, appended = ENGINES[name], SHAPES["64k"].appended
    found = [
        context * engine.token_bytes / 1e9 / (engine.flops(context, context + appended) / 1e15)
        for context in (16_384, 65_536)
    ]
    assert found == pytest.approx([least, most], rel=0.07)


def test_the_table_follows_from_the_arithmetic() -> None:
    """Tokens per second times operations per token is what a node of eight GPUs computes at 40 %."""
    engine = ENGINES["qwen2.5-32b"]
    for context, tokens_per_s in engine.prefill:
        assert tokens_per_s * engine.flops(int(context), int(context) + 1) == pytest.approx(8 * 989e12 * 0.4, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "an object is needed"),
        ('{"name": "x"}', "are needed"),
        ('{"name": "x", "token_bytes": 0, "prefill": [[0, 10]], "decode": [[0, 10]]}', "positive"),
        ('{"name": "x", "token_bytes": 64, "prefill": [[0, -1]], "decode": [[0, 10]]}', "above 0"),
        ('{"name": "x", "token_bytes": 64, "prefill": [[0, 10]], "decode": [[0, 10]], "gpus": 8}', "gpus"),
    ],
)
def test_a_file_that_is_no_engine_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """With what is wrong, before anything is started."""
    path = tmp_path / "engine.json"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=said):
        engine_model.chosen(str(path))


def test_a_file_describes_an_engine(tmp_path: Path) -> None:
    """Only its name, bytes and two tables are needed; one that is absent, and a name of none, are refused."""
    path = tmp_path / "engine.json"
    path.write_text('{"name": "mine", "token_bytes": 64, "prefill": [[0, 10], [100, 5]], "decode": [[0, 10]]}')
    assert engine_model.chosen(str(path)).prefill == ((0, 10.0), (100, 5.0))
    assert engine_model.chosen("Qwen2.5-32B") is ENGINES["qwen2.5-32b"]
    with pytest.raises(InvalidInput, match="No such file"):
        engine_model.chosen(str(tmp_path / "absent.json"))
    with pytest.raises(InvalidInput, match="neither"):
        engine_model.chosen("gpt")
