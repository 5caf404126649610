"""Recompute: how much is worth loading, against every other choice that there was."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import InvalidInput
from kvstore.policy import recompute
from kvstore.policy.recompute import Prefill, Speed, Stage, worth
from kvstore.policy.route import fluid_s

MB = 10**6
BLOCK_BYTES = 2 * MB
BLOCK_TOKENS = 64
BLOCKS = 40
RATES = st.floats(1 * MB, 10_000 * MB)
LANES = st.lists(st.tuples(RATES, st.floats(0, 2)), min_size=1, max_size=4)
SPEEDS = st.one_of(
    st.floats(10, 1e6),
    st.dictionaries(st.floats(0, 5000), st.floats(10, 1e6), min_size=1, max_size=5).map(lambda d: sorted(d.items())),
)


def stage(lanes: list[tuple[float, float]], first: int = 0, last: int = BLOCKS, name: str = "a NIC") -> Stage:
    """Passed by blocks first … last - 1."""
    at = np.arange(BLOCKS)
    return Stage(name, lanes, (at >= first) & (at < last))


STAGES = st.lists(st.builds(stage, LANES, st.integers(0, BLOCKS), st.integers(0, BLOCKS)), max_size=4)


def total_s(n: int, stages: list[Stage], prefill: Prefill) -> float:
    """By the words of the module, one block at a time."""
    passing = [(s.lanes, BLOCK_BYTES * int(s.passing[:n].sum())) for s in stages]
    load_s = max((fluid_s(length, lanes) for lanes, length in passing if length), default=0.0)
    contexts = [(block + 0.5) * BLOCK_TOKENS for block in range(n, BLOCKS)]
    rest_s = sum(BLOCK_TOKENS / float(np.interp(c, prefill.contexts, prefill.tokens_per_s)) for c in contexts)
    return load_s + (recompute._BEGIN_S if n else 0) + rest_s


def decide(stages: list[Stage], speed: Speed, blocks: int = BLOCKS) -> recompute.Worth:
    return worth(0, blocks, BLOCK_BYTES, BLOCK_TOKENS, stages, Prefill.of(speed))


@settings(deadline=None)
@given(STAGES, SPEEDS)
def test_nothing_else_is_faster(stages: list[Stage], speed: Speed) -> None:
    """Neither to compute all, nor to load all, nor anything between."""
    prefill = Prefill.of(speed)
    chosen_s = total_s(decide(stages, speed).blocks, stages, prefill)
    assert chosen_s <= min(total_s(n, stages, prefill) for n in range(BLOCKS + 1)) * (1 + 1e-9)


@settings(deadline=None)
@given(STAGES, SPEEDS, st.floats(1.01, 100))
def test_a_faster_engine_loads_no_more(stages: list[Stage], speed: Speed, factor: float) -> None:
    """At every context faster by the same factor."""
    faster = speed * factor if isinstance(speed, float) else [(c, v * factor) for c, v in speed]
    assert decide(stages, faster).blocks <= decide(stages, speed).blocks


@settings(deadline=None)
@given(STAGES, SPEEDS, st.floats(1.01, 100))
def test_faster_lanes_load_no_less(stages: list[Stage], speed: Speed, factor: float) -> None:
    """With what is queued on them gone faster too."""
    faster = [Stage(s.name, [(rate * factor, wait / factor) for rate, wait in s.lanes], s.passing) for s in stages]
    assert decide(faster, speed).blocks >= decide(stages, speed).blocks


@settings(deadline=None)
@given(STAGES, SPEEDS, st.integers(0, BLOCKS))
def test_what_the_engine_has_costs_nothing(stages: list[Stage], speed: Speed, first: int) -> None:
    """Nothing up to any other block would be faster, and to load nothing costs nothing."""
    prefill = Prefill.of(speed)
    theirs = [Stage(s.name, s.lanes, s.passing & (np.arange(BLOCKS) >= first)) for s in stages]
    found = worth(first, BLOCKS, BLOCK_BYTES, BLOCK_TOKENS, theirs, prefill)
    totals_s = [
        total_s(n, theirs, prefill) - (recompute._BEGIN_S if n == first and n else 0) for n in range(first, BLOCKS + 1)
    ]
    assert first <= found.blocks <= BLOCKS
    assert totals_s[found.blocks - first] <= min(totals_s) * (1 + 1e-8) + 1e-12
    assert found.why.startswith(f"{found.blocks - first} of {BLOCKS - first} blocks: ")


def test_what_no_lane_limits_is_loaded() -> None:
    """Blocks that are there already cost only the beginning of a load; of one block that may be too much."""
    assert decide([], 10_000.0).blocks == BLOCKS
    assert decide([], 10_000.0).why == "40 of 40 blocks: 0.005 s to load all, 0.256 s to compute all"
    assert decide([], 100_000.0, blocks=1).blocks == 0
    assert decide([], 10_000.0, blocks=0).blocks == 0


def test_a_slow_end_is_computed() -> None:
    """The first half is here, the second behind a NIC that is slower than the engine; it names the NIC."""
    found = decide([stage([(100 * MB, 0.0)], first=20, name="the NIC of far")], 10_000.0)
    assert found.blocks == 20
    assert found.why == (
        "20 of 40 blocks: 0.005 s to load these and 0.128 s to compute the others; "
        "0.405 s over the NIC of far to load all, 0.256 s to compute all"
    )


def test_a_busy_lane_is_worth_nothing() -> None:
    """Fast, but only once what waits there is through: later than the engine would be."""
    assert decide([stage([(10_000 * MB, 0.0)])], 10_000.0).blocks == BLOCKS
    found = decide([stage([(10_000 * MB, 0.3)])], 10_000.0)
    assert (found.blocks, found.why) == (
        0,
        "0 of 40 blocks: 0.313 s over a NIC to load all, 0.256 s to compute all",
    )


def test_stages_work_at_the_same_time() -> None:
    """Two that take 0.15 s each take no longer than one."""
    lanes = [(BLOCKS * BLOCK_BYTES / 0.15, 0.0)]
    assert decide([stage(lanes), stage(lanes)], 10_000.0).blocks == BLOCKS


def test_where_all_is_level_it_loads() -> None:
    """A block loads exactly as fast as it is computed: the GPU is left to others."""
    assert decide([stage([(BLOCK_BYTES, 0.0)], first=1)], float(BLOCK_TOKENS)).blocks == BLOCKS


def test_long_contexts_are_slower_to_compute() -> None:
    """Between the given contexts the speed is interpolated, beyond them the nearest holds."""
    prefill = Prefill.of([(128, 1000), (256, 500)])
    rest_s = prefill.rest_s(5, 64)
    each_s = rest_s[:-1] - rest_s[1:]
    assert each_s == pytest.approx([0.064, 0.064, 64 / 875, 64 / 625, 0.128])
    assert rest_s[-1] == 0


@pytest.mark.parametrize(
    "speed",
    [
        *(0, -1.0, math.nan, math.inf, 10**400, None, "fast"),
        *([], [1, 2], [("a", 1)], [(1, 2, 3)]),
        *([(0, 0)], [(5, 10), (5, 20)], [(5, 10), (4, 20)], [(-1, 5)], [(math.nan, 5)]),
    ],
)
def test_what_is_no_speed(speed: object) -> None:
    """Is InvalidInput, before anything else happens."""
    with pytest.raises(InvalidInput):
        Prefill.of(speed)  # type: ignore[arg-type]
