"""What a request took, whether that was good enough, and the highest rate at which it is. Pure.

Goodput is DistServe's: the highest request rate at which so many of the requests (90 %) meet both objectives.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ATTAINED = 0.9
_CDF_POINTS = 50
_STEP = 1.25


@dataclass(frozen=True, slots=True)
class Slo:
    """Seconds until the first token, and per token after it."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Served:
    """One request. Times of one clock: when it came, its first, second and last token. failed: why it has none of them.

    prompt_tokens, hit_tokens: of the prompt, and of it what was loaded. sources: bytes by (tier, route).
    """

    arrived_s: float
    first_s: float = 0.0
    second_s: float = 0.0
    last_s: float = 0.0
    generated: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    sources: Mapping[tuple[str, str], int] = field(default_factory=dict)
    failed: str = ""

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrived_s

    @property
    def tpot_s(self) -> float:
        """Mean over the tokens after the first; what decoding had to wait for its prompt's KV is part of it."""
        return (self.last_s - self.first_s) / max(1, self.generated - 1)

    @property
    def second_token_s(self) -> float:
        """From arrival to the second token."""
        return self.second_s - self.arrived_s

    def meets(self, slo: Slo) -> bool:
        return not self.failed and self.ttft_s <= slo.ttft_s and self.tpot_s <= slo.tpot_s


@dataclass(frozen=True, slots=True)
class Attainment:
    """Of one rate, which was asked for. arrived_per_s: what came, for a session whose answers come late asks late.
    early: it was given up before its end, since too many had missed already: of those that came until then, with those
    that still waited for too long."""

    rate: float
    arrived_per_s: float
    requests: int
    met: int
    early: bool = False

    @property
    def share(self) -> float:
        return self.met / max(1, self.requests)

    @property
    def enough(self) -> bool:
        return self.requests > 0 and not self.early and self.share >= ATTAINED


def misses_allowed(requests: int) -> int:
    """Of so many: with one more the objective is missed."""
    return int(requests * (1 - ATTAINED) + 1e-9)


class Bisection:
    """The highest rate that is enough, between two, to a relative tolerance; by as few trials as that takes.

    From `start` it goes on by steps of a quarter, each the square of the last, until it has a rate that is enough and
    one that is not; then rates are tried where their logarithms halve the interval, for the error that counts is
    relative. `rate` is the next to try, None when done.
    """

    def __init__(self, start: float, low: float, high: float, tolerance: float) -> None:
        assert 0 < low <= start <= high
        assert tolerance > 0
        self._good, self._bad = 0.0, 0.0
        self._low, self._high = low, high
        self._tolerance = tolerance
        self._step = _STEP
        self.rate: float | None = start

    @property
    def found(self) -> float:
        """The highest rate that was enough so far; 0: none."""
        return self._good

    @property
    def bounded(self) -> bool:
        """Whether a rate that is too high was seen: else the true value may lie above."""
        return self._bad > 0

    def tell(self, enough: bool) -> None:
        """The outcome of trying `rate`."""
        assert self.rate is not None
        if enough:
            self._good = self.rate
        else:
            self._bad = self.rate
        self.rate = self._next()

    def _next(self) -> float | None:
        if not self._bad or not self._good:
            step, self._step = self._step, self._step**2
            if self._good:
                return min(self._high, self._good * step) if self._good < self._high else None
            return max(self._low, self._bad / step) if self._bad > self._low else None
        if self._bad / self._good <= 1 + self._tolerance:
            return None
        return math.sqrt(self._good * self._bad)


def latencies(served: Sequence[Served]) -> dict[str, Any]:
    """p50, p90, p99 and the curve of each, over the requests that were answered."""
    whole = [one for one in served if not one.failed]
    if not whole:
        return {}
    kinds = {
        "ttft_s": [one.ttft_s for one in whole],
        "tpot_s": [one.tpot_s for one in whole],
        "second_token_s": [one.second_token_s for one in whole],
    }
    return {name: _distribution(values) for name, values in kinds.items()}


def _distribution(values: Sequence[float]) -> dict[str, Any]:
    p50, p90, p99 = (float(found) for found in np.percentile(values, (50, 90, 99)))
    shares = np.linspace(0, 1, min(_CDF_POINTS, len(values)))
    curve = [[float(at), float(share)] for share, at in zip(shares, np.quantile(values, shares), strict=True)]
    return {"p50": p50, "p90": p90, "p99": p99, "cdf": curve}


def hits(served: Sequence[Served]) -> dict[str, Any]:
    """The part of the prompts' tokens that was loaded; of the loaded bytes, what came from each tier by each route."""
    whole = [one for one in served if not one.failed]
    prompt = sum(one.prompt_tokens for one in whole)
    came: Counter[tuple[str, str]] = Counter()
    for one in whole:
        came.update(one.sources)
    total = sum(came.values())
    return {
        "hit_ratio": sum(one.hit_tokens for one in whole) / max(1, prompt),
        "from": {f"{tier}, {route}": count / total for (tier, route), count in sorted(came.items())} if total else {},
        "loaded_bytes": total,
    }
