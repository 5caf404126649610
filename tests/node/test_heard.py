"""What other nodes' lanes were loaded with, by their own word."""

from kvstore.node.heard import FRESH_NS, Heard
from kvstore.pb import types_pb2


def lane(name: str, queued_bytes: int, bytes_per_s: int = 100) -> types_pb2.LaneLoad:
    return types_pb2.LaneLoad(lane=name, queued_bytes=queued_bytes, bytes_per_s=bytes_per_s)


HELPER = types_pb2.Helper(
    node=types_pb2.NodeAddress(node_id="h"), load=types_pb2.NodeLoad(lanes=[lane("storage-in", 7), lane("nvme0", 3)])
)


def queues(heard: Heard, now_ns: int) -> dict[str, int]:
    return {lane.lane: lane.queued_bytes for lane in heard.fresher(HELPER, now_ns).load.lanes}


def test_what_was_heard_lately_counts_for_more_than_a_match() -> None:
    """Lane by lane, and only of that node; after a while the match knows better."""
    heard = Heard()
    assert heard.fresher(HELPER, 0) == HELPER
    heard.note("h", [lane("storage-in", 1000, 50), lane("compute-out", 20)], 0)
    heard.note("other", [lane("nvme0", 99)], 0)
    assert queues(heard, FRESH_NS - 1) == {"storage-in": 1000, "nvme0": 3, "compute-out": 20}
    assert heard.fresher(HELPER, 1).load.lanes[0].bytes_per_s == 50
    assert queues(heard, FRESH_NS) == {"storage-in": 7, "nvme0": 3}


def test_one_answer_after_the_other_makes_an_average() -> None:
    """A queue is told of one instant; after a rest the next one begins anew."""
    heard = Heard()
    for queued_bytes in (1000, 0, 0):
        heard.note("h", [lane("storage-in", queued_bytes)], 0)
    assert queues(heard, 0)["storage-in"] == 250
    heard.note("h", [lane("storage-in", 40)], FRESH_NS)
    assert queues(heard, FRESH_NS)["storage-in"] == 40


def test_the_nodes_that_answered_last_are_remembered() -> None:
    """However many there are."""
    heard = Heard()
    for number in range(3000):
        heard.note("h", [lane("storage-in", 1)], 0)
        heard.note(str(number), [lane("storage-in", 1)], 0)
    assert queues(heard, 0)["storage-in"] == 1
    assert len(heard._nodes) <= 1024
