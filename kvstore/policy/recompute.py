"""Recompute: how much of a match is worth loading, so that a load is never slower than to compute again. Pure.

The first n matched blocks are loaded, then the others are prefilled. What loads passes stages (a disk, a lane of a NIC,
the copy into the engine's buffers), which work at the same time: a load takes as long as its slowest stage. Every n is
tried, so by this model the answer is slower neither than loading nothing nor than loading everything. Among equals the
longest load counts, since it leaves the GPU to others. An engine that computes while layers arrive only gains.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from kvstore.errors import InvalidInput
from kvstore.policy.route import fluid_steps

Speed = float | Sequence[tuple[float, float]]
"""Tokens per second; or (tokens of context, tokens per second) pairs, by rising context."""
Seconds = npt.NDArray[np.float64]
_BEGIN_S = 0.005
"""Of a load, whatever its length."""
_LEVEL = 1 + 1e-9
"""Times that differ by less are equal."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """How fast an engine prefills. Between two contexts the speed is interpolated, outside the nearest one holds."""

    contexts: tuple[float, ...]
    tokens_per_s: tuple[float, ...]

    @classmethod
    def of(cls, speed: Speed) -> Self:
        """Raises InvalidInput for what is no speed."""
        try:
            pairs = [(0.0, speed)] if isinstance(speed, int | float) else speed
            points = [(float(context), float(tokens_per_s)) for context, tokens_per_s in pairs]
        except (TypeError, ValueError, OverflowError):
            raise InvalidInput(f"prefill: a number, or pairs of numbers, are needed, not {speed!r:.60}") from None
        contexts, speeds = tuple(c for c, _ in points), tuple(v for _, v in points)
        rising = all(before < after for before, after in zip((-1.0, *contexts), contexts, strict=False))
        if not points or not rising or not all(0 < v < math.inf for v in speeds):
            raise InvalidInput("prefill: tokens per second must be above 0, contexts must rise from 0 or more")
        return cls(contexts, speeds)

    def rest_s(self, blocks: int, block_tokens: int) -> Seconds:
        """For n = 0 … blocks: the time to prefill what follows the first n blocks."""
        middles = (np.arange(blocks) + 0.5) * block_tokens
        each_s = block_tokens / np.interp(middles, self.contexts, self.tokens_per_s)
        return np.append(np.cumsum(each_s[::-1])[::-1], 0.0)


@dataclass(frozen=True, slots=True)
class Stage:
    """What some blocks pass on their way. passing: whether each does. lanes: (bytes per second, delay in seconds) of
    those that share the work."""

    name: str
    lanes: Sequence[tuple[float, float]]
    passing: npt.NDArray[np.bool_]

    def load_s(self, block_bytes: int) -> Seconds:
        """For n = 0 … blocks: when those of the first n blocks that pass are through."""
        lengths = np.append(0, np.cumsum(self.passing)) * float(block_bytes)
        carried, since_s, rate = np.array(fluid_steps(self.lanes)).T
        step = np.searchsorted(carried, lengths, side="right") - 1
        through_s: Seconds = since_s[step] + (lengths - carried[step]) / rate[step]
        return np.where(lengths > 0, through_s, 0.0)


@dataclass(frozen=True, slots=True)
class Worth:
    """blocks: up to where those matched are worth loading. why: in a sentence."""

    blocks: int
    why: str


def worth(
    first: int, blocks: int, block_bytes: int, block_tokens: int, stages: Sequence[Stage], prefill: Prefill
) -> Worth:
    """Up to where to load blocks first … blocks - 1 so that all are there soonest; the stages are theirs."""
    load_s = np.zeros(blocks + 1)
    slowest = None
    for stage in stages:
        stage_s = stage.load_s(block_bytes)
        slowest = stage if stage_s[-1] > load_s[-1] else slowest
        load_s = np.maximum(load_s, stage_s)
    load_s[first + 1 :] += _BEGIN_S
    rest_s = prefill.rest_s(blocks, block_tokens)
    total_s = load_s + rest_s
    best = first + int(np.flatnonzero(total_s[first:] <= total_s[first:].min() * _LEVEL)[-1])
    by = f" over {slowest.name}" if slowest else ""
    whole = f"{load_s[-1]:.3f} s{by} to load all, {rest_s[first]:.3f} s to compute all"
    if first < best < blocks:
        whole = f"{load_s[best]:.3f} s to load these and {rest_s[best]:.3f} s to compute the others; {whole}"
    return Worth(best, f"{best - first} of {blocks - first} blocks: {whole}")
