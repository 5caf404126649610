"""Operators' pins, merged from what the nodes tell of them."""

from kvstore.control.page.pins import SHOWN_MAX, pins
from kvstore.pb import admin_pb2, node_pb2
from tests.control.page.looks import telling


def stats(**found: list[node_pb2.OperatorPin]) -> admin_pb2.StatsReply:
    """What each node says; and one does not answer."""
    usages = telling("operator_pins", found)
    return admin_pb2.StatsReply(nodes=[*usages, admin_pb2.NodeUsage(node_id="silent", error="gone")])


def pin(pin_id: bytes, blocks: int, remaining_ms: int = 1000, model: str = "") -> node_pb2.OperatorPin:
    return node_pb2.OperatorPin(
        pin_id=pin_id,
        namespace_id=b"n",
        tenant="acme",
        model=model,
        last_key=bytes([blocks]),
        blocks=blocks,
        bytes=10 * blocks,
        remaining_ms=remaining_ms,
    )


def test_a_pin_is_one_whatever_nodes_keep_of_it() -> None:
    """Its blocks and bytes are all nodes' together; its last key is that of the node that keeps most of it, and its
    model is told by whichever knows it. A node that did not answer tells nothing."""
    assert pins(stats(a=[pin(b"p", 2, 900, "m")], b=[pin(b"p", 3)])) == {
        "count": 1,
        "shown": [
            {
                "id": b"p".hex(),
                "namespace": b"n".hex(),
                "tenant": "acme",
                "model": "m",
                "last_key": "03",
                "remaining_ms": 1000,
                "blocks": 5,
                "bytes": 50,
                "nodes": [{"node": "a", "blocks": 2, "bytes": 20}, {"node": "b", "blocks": 3, "bytes": 30}],
            }
        ],
    }


def test_those_that_end_first_are_shown() -> None:
    """And all are counted."""
    many = [pin(bytes([number]), 1, remaining_ms=1000 - number) for number in range(SHOWN_MAX + 1)]
    told = pins(stats(a=many))
    assert (told["count"], len(told["shown"])) == (SHOWN_MAX + 1, SHOWN_MAX)
    assert [each["remaining_ms"] for each in told["shown"]] == sorted(each.remaining_ms for each in many)[:SHOWN_MAX]
