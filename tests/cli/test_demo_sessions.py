"""The demo's workloads: agent sessions and traces."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from kvstore.cli.demo_sessions import SHAPES, TRACE_BLOCK_TOKENS, agent_session, read_trace, trace_turn
from kvstore.errors import InvalidInput


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_each_prompt_continues_what_was_said(shape) -> None:
    """A turn's prompt begins with the last prompt and its answer."""
    turns = [*agent_session(shape, 1 / 16, 0, seed=1)]
    for before, after in itertools.pairwise(turns):
        said = np.concatenate([before.prompt, before.answer])
        assert np.array_equal(after.prompt[: said.size], said)
        assert after.prompt.size > said.size


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_sessions_have_their_shape(shape) -> None:
    """Means of appended and generated tokens are the shape's, and the context stays below its bound."""
    turns = [turn for seed in range(8) for turn in agent_session(shape, 1, 0, seed)]
    assert max(turn.prompt.size + turn.answer.size for turn in turns) <= shape.tokens_max
    assert np.mean([turn.answer.size for turn in turns]) == pytest.approx(shape.generated, rel=0.1)
    session = [*agent_session(shape, 1, 0, seed=0)]
    appended = np.diff([turn.prompt.size for turn in session]) - [turn.answer.size for turn in session[:-1]]
    assert np.mean(appended) == pytest.approx(shape.appended, rel=0.1)


def test_sessions_are_reproducible_and_distinct() -> None:
    """The seed decides: the same one gives the same tokens, another one other tokens from the first on."""

    def first(seed: int) -> bytes:
        return next(agent_session(SHAPES[0], 1, 1, seed)).prompt.tobytes()

    assert first(1) == first(1)
    assert first(1)[:16] != first(2)[:16]


def test_turns_are_limited() -> None:
    """`turns_max` ends a session early."""
    assert len([*agent_session(SHAPES[2], 1 / 16, 5, seed=0)]) == 5


def line(ids: list[int], input_length: int, output_length: int = 10) -> str:
    return json.dumps({"input_length": input_length, "output_length": output_length, "hash_ids": ids})


@pytest.mark.parametrize("scale", [1, 1 / 8, 1 / 100])
def test_equal_ids_give_equal_tokens(scale: float) -> None:
    """Two requests share exactly the tokens of the ids they share."""
    a, b = read_trace([line([7, 8, 9], 3 * TRACE_BLOCK_TOKENS), line([7, 8, 10], 2 * TRACE_BLOCK_TOKENS + 256)])
    first, second = trace_turn(a, scale, 0), trace_turn(b, scale, 1)
    step = max(1, round(TRACE_BLOCK_TOKENS * scale))
    assert first.prompt.size == 3 * step
    assert second.prompt.size == 2 * step + max(1, round(256 * scale))
    assert np.array_equal(first.prompt[: 2 * step], second.prompt[: 2 * step])
    assert not np.array_equal(first.prompt[2 * step :][: second.prompt.size - 2 * step], second.prompt[2 * step :])


def test_a_partial_id_is_a_prefix_of_the_whole_one() -> None:
    """An id whose block is cut short gives the first tokens of the block."""
    whole, cut = read_trace([line([5], 512), line([5], 100)])
    assert np.array_equal(trace_turn(whole, 1, 0).prompt[:100], trace_turn(cut, 1, 1).prompt)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "line 2: not a request"),
        ("[]", "line 2: not a request"),
        (line([1], float("inf")), "line 2: not a request"),
        ('{"input_length": 5, "output_length": 1}', "hash_ids"),
        (line([1, 2], 512), "2 ids do not cover 512 tokens"),
        (line([], 0), "0 ids do not cover 0 tokens"),
        (line([-1], 5), "negative"),
        (line([1], 5, -1), "negative"),
    ],
)
def test_lines_that_are_no_requests(text: str, words: str) -> None:
    """A broken line is named by its number; the lines before it were read."""
    requests = read_trace([line([1], 5), text])
    assert next(requests).ids == (1,)
    with pytest.raises(InvalidInput, match=words):
        next(requests)


def test_a_real_trace_is_read() -> None:
    """The published conversation trace, where it is at hand: its ideal hit ratio comes out."""
    path = Path(os.environ.get("KVSTORE_TRACE") or Path(__file__).parents[3] / "shared/traces/conversation_trace.jsonl")
    if not path.exists():
        pytest.skip(f"{path} is not there")
    seen: set[int] = set()
    total = 0
    with path.open() as file:
        for request in read_trace(file):
            total += len(request.ids)
            seen.update(request.ids)
    assert 1 - len(seen) / total == pytest.approx(0.3664, abs=1e-4)
