"""What the demo's engines are asked for: agent sessions, or the requests of a trace. Pure: tokens follow from seeds."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.errors import InvalidInput

Tokens = npt.NDArray[np.uint32]

VOCABULARY = 128_000
TRACE_BLOCK_TOKENS = 512
"""Tokens that one id of a trace stands for."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of an engine: the whole prompt, and what the model will answer."""

    prompt: Tokens
    answer: Tokens


@dataclass(frozen=True, slots=True)
class Shape:
    """Means of an agentic workload (DualPath, arXiv 2602.21548): tokens appended and generated per turn."""

    name: str
    tokens_max: int
    turns: int
    appended: int
    generated: int


SHAPES = (
    Shape("32K", 32 * 1024, 60, 608, 148),
    Shape("48K", 48 * 1024, 106, 474, 172),
    Shape("64K", 64 * 1024, 157, 429, 176),
)


def agent_session(shape: Shape, scale: float, turns_max: int, seed: int) -> Iterator[Turn]:
    """The turns of one session: each prompt is all that was said before, and something new (a tool's output).

    scale: of all token counts; appended and generated tokens vary by half around their mean. The session ends after
    the shape's turns, after `turns_max` (0: no such limit), or at the shape's longest context.
    """
    random = np.random.default_rng((seed, shape.tokens_max))
    said = np.empty(0, np.uint32)
    for _ in range(min(shape.turns, turns_max or shape.turns)):
        prompt = np.concatenate([said, _spoken(random, shape.appended * scale)])
        turn = Turn(prompt, _spoken(random, shape.generated * scale))
        said = np.concatenate([prompt, turn.answer])
        if said.size > shape.tokens_max * scale:
            return
        yield turn


def _spoken(random: np.random.Generator, mean: float) -> Tokens:
    count = max(1, round(mean * random.uniform(0.5, 1.5)))
    return random.integers(0, VOCABULARY, count, dtype=np.uint32)


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One line of a trace. ids: one per 512 tokens of the prompt, equal where the whole prefix is equal."""

    input_tokens: int
    output_tokens: int
    ids: tuple[int, ...]


def read_trace(lines: Iterable[str]) -> Iterator[TraceRequest]:
    """The requests of a trace: one JSON object a line with input_length, output_length and hash_ids.

    Raises InvalidInput with the number of a line that is none.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields: dict[str, Any] = json.loads(line)
            ids = tuple(int(i) for i in fields["hash_ids"])
            request = TraceRequest(int(fields["input_length"]), int(fields["output_length"]), ids)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InvalidInput(f"trace, line {number}: not a request: {error!r}") from error
        if request.input_tokens < 1 or len(ids) != -(-request.input_tokens // TRACE_BLOCK_TOKENS):
            raise InvalidInput(f"trace, line {number}: {len(ids)} ids do not cover {request.input_tokens} tokens")
        if request.output_tokens < 0 or min(ids) < 0:
            raise InvalidInput(f"trace, line {number}: neither output_length nor an id may be negative")
        yield request


def trace_turn(request: TraceRequest, scale: float, seed: int) -> Turn:
    """A request with synthetic tokens: equal ids give equal tokens, in every request.

    scale: of all token counts. seed: of the answer, which no other request's prompt contains.
    """
    step = max(1, round(TRACE_BLOCK_TOKENS * scale))
    last = max(1, round((request.input_tokens - (len(request.ids) - 1) * TRACE_BLOCK_TOKENS) * scale))
    prompt = np.concatenate([_tokens_of_id(number, step) for number in request.ids])[
        : (len(request.ids) - 1) * step + last
    ]
    answer = np.random.default_rng((seed, 1)).integers(0, VOCABULARY, max(1, round(request.output_tokens * scale)))
    return Turn(prompt, answer.astype(np.uint32))


def _tokens_of_id(number: int, count: int) -> Tokens:
    return np.random.default_rng((number, 0)).integers(0, VOCABULARY, count, dtype=np.uint32)
