"""Sessions: drawn from a shape, or taken from a trace."""

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.trace import TRACE_BLOCK_TOKENS, Request
from kvbench.workload import SHAPES, Agents, Prompt, Segment, Session, Traced
from kvstore.errors import InvalidInput

SHAPE = SHAPES["64k"]


def agents(turns: int = 3, pool: int = 8, gap_s: float = 1.0) -> Agents:
    return Agents(SHAPE, pool, turns, gap_s, seed=1)


def prompts(session: Session) -> list[Prompt]:
    """Of each turn: all that was said before, and what is new."""
    found, prompt = [], session.history
    for turn in session.turns:
        prompt = prompt.then(*turn.appended)
        found.append(prompt)
        prompt = prompt.then(turn.answer)
    return found


segments = st.builds(Segment, st.tuples(st.integers(0, 2**31), st.integers(0, 99)), st.integers(0, 40))


@given(st.lists(segments, max_size=5), st.lists(segments, max_size=5))
def test_a_prompt_is_its_segments(first: list[Segment], more: list[Segment]) -> None:
    """Anybody who reads its JSON makes the same tokens; a prompt that goes on begins as the one before."""
    prompt = Prompt(tuple(first))
    longer = prompt.then(*more)
    assert Prompt.from_json(longer.to_json()) == longer
    made = longer.made()
    assert made.size == longer.tokens
    assert np.array_equal(made[: prompt.tokens], prompt.made())


@settings(deadline=None)
@given(
    rate=st.floats(0.2, 20),
    seconds=st.floats(5, 60),
    turns=st.integers(1, 5),
    turn_s=st.floats(0.1, 8),
    gap_s=st.floats(0, 5),
    salt=st.integers(0, 9),
)
def test_sessions_are_many_enough_and_in_order(
    rate: float, seconds: float, turns: int, turn_s: float, gap_s: float, salt: int
) -> None:
    """All begin in time, one after the other; their turns are those that a process which is long under way has left."""
    drawn = agents(turns, gap_s=gap_s).workload(rate, seconds, turn_s, salt)
    assert all(0 <= session.at_s < seconds for session in drawn.sessions)
    assert all(one.at_s <= other.at_s for one, other in pairwise(drawn.sessions))
    assert all(1 <= len(session.turns) <= turns for session in drawn.sessions)
    assert {session.history for session in drawn.sessions} <= {*drawn.histories}
    period_s = turn_s + gap_s
    came = sum(
        session.at_s + turn * period_s < seconds for session in drawn.sessions for turn in range(len(session.turns))
    )
    # The last interval and the number of sessions are rounded; a session stands for so many turns.
    assert came == pytest.approx(rate * seconds, abs=turns * (2 + 4 * (rate * (seconds + period_s * turns)) ** 0.5))


def test_a_rate_is_what_was_asked_for() -> None:
    """In the mean over many seconds: so many turns in each."""
    drawn = agents(turns=2).workload(5.0, 400.0, 4.0, 1)
    at_s = [session.at_s + 5.0 * turn for session in drawn.sessions for turn in range(len(session.turns))]
    assert sum(at < 400 for at in at_s) / 400 == pytest.approx(5.0, rel=0.05)


def test_arrivals_are_a_poisson_process() -> None:
    """Gaps vary as much as they last, and gaps shorter than a tenth of the mean come as often as they should."""
    at = [session.at_s for session in agents(turns=1, pool=8).workload(20.0, 200.0, 1.0, 1).sessions]
    gaps = np.diff(at)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.1)
    assert (gaps < gaps.mean() / 10).mean() == pytest.approx(1 - math.exp(-0.1), abs=0.03)


def test_runs_differ_in_what_is_new_only() -> None:
    """No run finds what another has left: not its turns, and not the last one's histories; times and lengths agree."""
    one, other, third = (agents().workload(3.0, 20.0, 4.0, salt) for salt in (1, 2, 3))
    assert [session.at_s for session in one.sessions] == [session.at_s for session in other.sessions]
    pairs = list(zip(one.sessions, other.sessions, third.sessions, strict=True))
    assert all(first.history != second.history and first.history == last.history for first, second, last in pairs)
    for sessions in pairs:
        assert len({turn.answer for session in sessions for turn in session.turns}) == 3 * len(sessions[0].turns)
        assert len({tuple(turn.answer.count for turn in session.turns) for session in sessions}) == 1


def test_lengths_are_the_shapes() -> None:
    """Contexts spread from nothing to twice the mean; what is appended and generated has its mean."""
    drawn = agents(turns=1, pool=64).workload(10.0, 200.0, 1.0, 1)
    lengths = [history.tokens for history in drawn.histories]
    assert statistics.mean(lengths) == pytest.approx(SHAPE.context, rel=0.01)
    assert max(lengths) < 2 * SHAPE.context
    turns = [session.turns[0] for session in drawn.sessions]
    assert statistics.mean(turn.appended[0].count for turn in turns) == pytest.approx(SHAPE.appended, rel=0.05)
    assert statistics.mean(turn.answer.count for turn in turns) == pytest.approx(SHAPE.generated, rel=0.05)


@pytest.mark.parametrize(("turns", "pool", "gap_s"), [(0, 8, 1.0), (1, 1, 1.0), (1, 8, -1.0), (1, 8, float("nan"))])
def test_sessions_that_cannot_be_drawn_are_refused(turns: int, pool: int, gap_s: float) -> None:
    """By the name of the option."""
    with pytest.raises(InvalidInput, match="--pool"):
        agents(turns, pool, gap_s)


def request(at_ms: int, blocks: tuple[int, ...], tail: int = 10, output: int = 5) -> Request:
    return Request(at_ms * 1_000_000, blocks, TRACE_BLOCK_TOKENS * (len(blocks) - 1) + tail, output)


def test_a_traces_prompts_are_equal_where_their_ids_are() -> None:
    """What an earlier request had is history; what only later ones share is new in each run."""
    traced = Traced(
        [request(0, (0, 1, 2))], [request(1000, (0, 1, 7, 8)), request(3000, (0, 1, 7, 9)), request(5000, (5,))]
    )
    one, other = traced.workload(2.0, 1), traced.workload(2.0, 2)
    assert [session.history.tokens for session in one.sessions] == [2 * TRACE_BLOCK_TOKENS] * 2 + [0]
    assert one.histories == (one.sessions[0].history,) == other.histories
    first, second, alone = (prompts(session)[0] for session in one.sessions)
    assert (first.tokens, alone.tokens) == (3 * TRACE_BLOCK_TOKENS + 10, 10)
    assert first.segments[:3] == second.segments[:3]
    assert first.segments[3] != second.segments[3]
    again = prompts(other.sessions[0])[0]
    assert again.segments[:2] == first.segments[:2]
    assert again.segments[2] != first.segments[2]
    assert [session.at_s for session in one.sessions] == pytest.approx([0.0, 0.75, 1.5])
    assert traced.rate == pytest.approx(0.75)


def test_requests_of_one_time_come_evenly_until_the_next() -> None:
    """A trace whose clock stands still for seconds has crowds, which no rate would thin out; nor do they change the
    order, or what comes in all."""
    times_ms = [0, 0, 0, 3000, 6000, 6000]
    traced = Traced([], [request(at_ms, (number,)) for number, at_ms in enumerate(times_ms)])
    slow = traced.workload(traced.rate / 10, 1)
    assert [session.at_s for session in slow.sessions] == pytest.approx([0, 10, 20, 30, 60, 75])
    assert traced.rate == pytest.approx(6 / 7.5)
    crowd = Traced([], [request(7, (number,)) for number in range(3)])
    assert [session.at_s for session in crowd.workload(2.0, 1).sessions] == [0.0] * 3
