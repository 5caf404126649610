"""What engines are asked for: sessions of turns, drawn from a shape or taken from a trace. Pure: it follows from seeds.

A prompt is named by its segments, (seed, count): equal segments are equal tokens, in every process. What is old in a
prompt is the history that lies in storage before anything is measured; what is new is salted, so that no run finds what
another has left.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt

from kvbench.trace import TRACE_BLOCK_TOKENS, Request
from kvstore.errors import InvalidInput

VOCABULARY = 128_000
_OLD, _NEW = 0, 1
Tokens = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Segment:
    """count tokens that follow from a seed."""

    seed: tuple[int, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Prompt:
    segments: tuple[Segment, ...]

    @property
    def tokens(self) -> int:
        return sum(segment.count for segment in self.segments)

    def then(self, *segments: Segment) -> Self:
        return type(self)(self.segments + segments)

    def made(self) -> Tokens:
        drawn = [
            np.random.default_rng(segment.seed).integers(0, VOCABULARY, segment.count, dtype=np.uint32)
            for segment in self.segments
        ]
        return np.concatenate(drawn) if drawn else np.empty(0, np.uint32)

    def to_json(self) -> str:
        return json.dumps([[*segment.seed, segment.count] for segment in self.segments])

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(tuple(Segment(tuple(seed), count) for *seed, count in json.loads(text)))


@dataclass(frozen=True, slots=True)
class Turn:
    """One request. appended: what is new in its prompt, after all that was said before. answer: what is generated."""

    appended: tuple[Segment, ...]
    answer: Segment


@dataclass(frozen=True, slots=True)
class Session:
    """at_s: when it first asks. history: what was said before; it lies in storage."""

    at_s: float
    history: Prompt
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    """histories: what storage is to hold before. gap_s: from a turn's last token to the session's next turn."""

    histories: tuple[Prompt, ...]
    sessions: tuple[Session, ...]
    gap_s: float

    @property
    def requests(self) -> int:
        return sum(len(session.turns) for session in self.sessions)


@dataclass(frozen=True, slots=True)
class Shape:
    """An agentic workload of the DualPath paper (arXiv 2602.21548): means per session and turn, in tokens."""

    name: str
    turns: int
    appended: int
    generated: int
    context: int


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("32k", 60, 608, 148, 17_183),
        Shape("48k", 106, 474, 172, 25_120),
        Shape("64k", 157, 429, 176, 32_721),
    )
}


@dataclass(frozen=True, slots=True)
class Agents:
    """Sessions of a shape, each somewhere in its course.

    The context of a turn is drawn evenly from 0 to twice the shape's mean, as that of a session which grows evenly to
    the shape's longest context; appended and generated tokens vary by half around their means. pool: different
    histories, half of them for every other run: what one leaves in the engines' memory is not what the next asks for.
    turns: that one session is followed for.
    """

    shape: Shape
    pool: int
    turns: int
    gap_s: float
    seed: int

    def __post_init__(self) -> None:
        if self.pool < 2 or self.turns < 1 or not 0 <= self.gap_s < math.inf:
            raise InvalidInput("--pool must be 2 or more, --turns 1 or more, --turn-gap 0 or more")

    @property
    def histories(self) -> tuple[Prompt, ...]:
        """Evenly spread lengths, in an order that is drawn."""
        half = self.pool // 2
        order = np.random.default_rng((self.seed, self.pool)).permutation(half)
        lengths = (order + 0.5) / half * 2 * self.shape.context
        return tuple(
            Prompt((Segment((_OLD, self.seed, part, number), max(1, round(length))),))
            for part in range(2)
            for number, length in enumerate(lengths)
        )

    def workload(self, rate: float, seconds: float, turn_s: float, salt: int) -> Workload:
        """So many turns a second for so long. turn_s: what one is expected to take, until its last token.

        Sessions begin in a Poisson process, of which the number of events is given its mean; the process is the same
        for every rate, stretched. It began so long ago that as many sessions are under way at 0 as later.
        """
        assert turn_s > 0
        period_s = turn_s + self.gap_s
        past_s = (self.turns - 1) * period_s
        random = np.random.default_rng((self.seed, 1))
        count = max(1, round(rate / self.turns * (seconds + past_s)))
        starts = np.sort(random.uniform(-past_s, seconds, count))
        half = self.pool // 2
        histories = self.histories
        ours = histories[salt % 2 * half :][:half]
        sessions = []
        for number, start in enumerate(starts):
            gone = max(0, math.ceil(-start / period_s))
            left = self.turns - gone
            if left < 1:
                continue
            history = ours[number % half]
            turns = tuple(self._turn((salt, self.seed, number, gone + turn)) for turn in range(left))
            sessions.append(Session(float(start) + gone * period_s, history, turns))
        sessions.sort(key=lambda session: session.at_s)
        return Workload(histories, tuple(session for session in sessions if session.at_s < seconds), self.gap_s)

    def _turn(self, salted: tuple[int, ...]) -> Turn:
        random = np.random.default_rng(salted[1:])  # lengths are the same in every run
        appended, generated = (
            max(1, round(mean * random.uniform(0.5, 1.5))) for mean in (self.shape.appended, self.shape.generated)
        )
        return Turn((Segment((_NEW, *salted, 0), appended),), Segment((_NEW, *salted, 1), generated))


@dataclass(frozen=True, slots=True)
class Traced:
    """Requests of a trace, each a session of its own. before: those that came earlier, whose blocks lie in storage."""

    before: Sequence[Request]
    requests: Sequence[Request]

    def workload(self, rate: float, salt: int) -> Workload:
        """The trace's own times, stretched to so many requests a second in the mean."""
        assert rate > 0
        known = {name for request in self.before for name in request.blocks}
        stretch = self.rate / rate
        sessions = []
        for number, (request, at_s) in enumerate(zip(self.requests, self._arrivals_s, strict=True)):
            old = next((i for i, name in enumerate(request.blocks) if name not in known), len(request.blocks))
            # The last id is of a partial block: it has too few tokens to be any other prompt's.
            old = min(old, request.input_tokens // TRACE_BLOCK_TOKENS)
            rest = request.input_tokens - TRACE_BLOCK_TOKENS * (len(request.blocks) - 1)
            counts = [TRACE_BLOCK_TOKENS] * (len(request.blocks) - 1) + [rest]
            segments = [
                Segment((_OLD, name) if name in known else (_NEW, salt, name), count)
                for name, count in zip(request.blocks, counts, strict=True)
            ]
            answer = Segment((_NEW, salt, number, 1), max(1, request.output_tokens))
            turn = Turn(tuple(segments[old:]), answer)
            sessions.append(Session(at_s * stretch, Prompt(tuple(segments[:old])), (turn,)))
        histories = dict.fromkeys(session.history for session in sessions if session.history.segments)
        return Workload(tuple(histories), tuple(sessions), 0.0)

    @property
    def rate(self) -> float:
        """Requests a second, as the trace has them."""
        return len(self.requests) / max(self._arrivals_s[-1], 1e-3)

    @property
    def _arrivals_s(self) -> list[float]:
        """Since the first. A trace's clock may stand still for seconds: requests that it gives one time come evenly
        until its next one, for stretched they would be ever larger crowds."""
        ticks = Counter(request.at_ns for request in self.requests)
        times = [*ticks]
        steps = [after - before for before, after in pairwise(times)]
        steps.append(steps[-1] if steps else 0)
        spread = (
            at_ns + step_ns * place / count
            for (at_ns, count), step_ns in zip(ticks.items(), steps, strict=True)
            for place in range(count)
        )
        return [(at_ns - times[0]) / 1e9 for at_ns in spread]
