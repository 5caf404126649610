"""Routing: over which storage NICs a load goes. Pure.

A reader has its own storage NIC. Every other node with one may help: it reads from storage over its own storage NIC
into its memory and pushes on over the compute network (the second path of DualPath, arXiv 2602.21548, section 4; there
each request is read on one side, here each is split over all). The lanes pull pieces as they have room, so the plan
need not be exact; it decides who takes part, and tells what to expect.

The model is a fluid: lane i begins after delay d_i (what is queued there already, and the time to ask it) and then
carries b_i bytes a second. N bytes are through at the T for which the sum of b_i · (T - d_i) over all lanes that have
begun is N. No lane idles before T, so no split is faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

RATE_START_BYTES_PER_S = 125_000_000
"""Of a lane that has not moved anything yet."""
_ASK_S = 0.002  # a stream to a node that is not yet asked


@dataclass(frozen=True, slots=True)
class LaneLoad:
    """One direction of a NIC: what it carries per second, and what waits for it already."""

    bytes_per_s: float
    queued_bytes: int = 0

    @property
    def wait_s(self) -> float:
        return self.queued_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that could help. storage: its storage NIC inwards. compute: its compute NIC outwards."""

    name: str
    storage: LaneLoad
    compute: LaneLoad

    @property
    def bytes_per_s(self) -> float:
        """What it relays: the slower of its two NICs."""
        return min(self.storage.bytes_per_s, self.compute.bytes_per_s)

    @property
    def wait_s(self) -> float:
        return _ASK_S + max(self.storage.wait_s, self.compute.wait_s)


@dataclass(frozen=True, slots=True)
class Question:
    """A load to be routed.

    length: bytes that lie in storage. own: the reader's storage NIC inwards. compute: its compute NIC inwards.
    storage_bytes_per_s: what storage gives to all readers together; 0: not known. piece_bytes: the unit of the split.
    """

    length: int
    own: LaneLoad
    compute: LaneLoad
    candidates: Sequence[Candidate]
    piece_bytes: int
    helpers_max: int
    storage_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """One lane of a plan. name: the helper; "": the reader's own storage NIC."""

    name: str
    bytes_per_s: float
    wait_s: float
    length: int


@dataclass(frozen=True, slots=True)
class Plan:
    """shares: the reader's own first, then the helpers. left_out: why each other candidate does not help."""

    shares: tuple[Share, ...]
    duration_s: float
    alone_s: float
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def helpers(self) -> tuple[str, ...]:
        return tuple(share.name for share in self.shares[1:])

    def __str__(self) -> str:
        lines = [f"{self.duration_s:.3f} s expected, {self.alone_s:.3f} s over the own storage NIC alone"]
        for share in self.shares:
            who = f"relay by {share.name}" if share.name else "direct"
            lines.append(
                f"  {who}: {share.length / 1e6:.1f} MB at {share.bytes_per_s / 1e9:.3f} GB/s after {share.wait_s:.3f} s"
            )
        lines += [f"  not {name}: {why}" for name, why in self.left_out]
        return "\n".join(lines)


def plan(question: Question) -> Plan:
    """Who helps with a load, and what each lane is expected to carry.

    A helper is taken only when the load ends at least one piece's time earlier with it: below that its fixed cost and
    its own traffic are not worth it.
    """
    own = Share("", question.own.bytes_per_s, question.own.wait_s, 0)
    alone_s = _ends_s(question, [own])
    lanes, left_out = [own], []
    expected_s = alone_s
    # Whoever can begin soonest, and of those the fastest, gains most; ties by name, so that a plan can be told again.
    for candidate in sorted(question.candidates, key=lambda c: (c.wait_s, -c.bytes_per_s, c.name)):
        room = question.compute.bytes_per_s - sum(lane.bytes_per_s for lane in lanes[1:])
        lane = Share(candidate.name, min(candidate.bytes_per_s, room), candidate.wait_s, 0)
        with_it_s, why_not = expected_s, _useless(question, lane, len(lanes) - 1, expected_s)
        if not why_not:
            with_it_s = _ends_s(question, [*lanes, lane])
            least_s = question.piece_bytes / sum(other.bytes_per_s for other in [*lanes, lane])
            if expected_s - with_it_s < least_s:
                why_not = f"it would save {max(0.0, expected_s - with_it_s) * 1e3:.1f} ms"
        if why_not:
            left_out.append((candidate.name, why_not))
            continue
        lanes.append(lane)
        expected_s = with_it_s
    lengths = _lengths(question.length, lanes, expected_s)
    shares = tuple(replace(lane, length=length) for lane, length in zip(lanes, lengths, strict=True))
    return Plan(shares, expected_s, alone_s, tuple(left_out))


def _lengths(length: int, lanes: Sequence[Share], ends_s: float) -> list[int]:
    """What each lane carries by then, in whole bytes: together the load, also where storage is the limit."""
    # After a wait that is long enough a float does not tell the end from the beginning: then it is the own NIC's.
    parts = [lane.bytes_per_s * max(0.0, ends_s - lane.wait_s) for lane in lanes]
    carried = list(accumulate(parts if any(parts) else [1.0, *parts[1:]], initial=0.0))
    borders = [round(length * part / carried[-1]) for part in carried]
    return [end - begin for begin, end in pairwise(borders)]


def fluid_s(length: int, lanes: Sequence[tuple[float, float]]) -> float:
    """When `length` bytes are through, over lanes of (bytes per second, delay in seconds): the least possible time."""
    carried, since_s, rate = next(step for step in reversed(fluid_steps(lanes)) if step[0] <= length)
    return since_s + (length - carried) / rate


def fluid_steps(lanes: Sequence[tuple[float, float]]) -> list[tuple[float, float, float]]:
    """How a fluid runs: at the beginning of each lane (bytes through, time, bytes per second from then on)."""
    rate = carried = now_s = 0.0
    steps = []
    for bytes_per_s, wait_s in sorted(lanes, key=lambda lane: lane[1]):
        carried += rate * (wait_s - now_s)
        rate, now_s = rate + bytes_per_s, wait_s
        steps.append((carried, now_s, rate))
    return steps


def max_to_avg(moved_bytes: Sequence[int]) -> float:
    """How unevenly NICs carried: the busiest over the average; 1: all the same, 0: none has carried anything."""
    total = sum(moved_bytes)
    return max(moved_bytes) * len(moved_bytes) / total if total else 0.0


def _ends_s(question: Question, lanes: Sequence[Share]) -> float:
    ends_s = fluid_s(question.length, [(lane.bytes_per_s, lane.wait_s) for lane in lanes])
    if question.storage_bytes_per_s:
        ends_s = max(ends_s, question.length / question.storage_bytes_per_s)
    return ends_s


def _useless(question: Question, lane: Share, helpers: int, expected_s: float) -> str:
    """Why a lane is not even tried; "": it is."""
    if helpers >= question.helpers_max:
        return f"{helpers} helpers are enough"
    if lane.wait_s >= expected_s:
        return f"it is busy for {lane.wait_s:.3f} s"
    if lane.bytes_per_s <= 0:
        return "the reader's compute NIC is full"
    return ""
