"""What nodes have counted of copies, added up."""

from kvstore.control.copies import added_up
from kvstore.pb import node_pb2

A, B = bytes(16), b"\1" * 16


def counted(
    namespace_id: bytes, wanted: int, on: list[int], owed: int, durable: int, ago: int
) -> node_pb2.NamespaceCopies:
    return node_pb2.NamespaceCopies(
        namespace_id=namespace_id,
        wanted=wanted,
        blocks_on=on,
        copies_owed=owed,
        durable_blocks=durable,
        counted_ms_ago=ago,
    )


def test_nodes_counts_are_added_up() -> None:
    """By namespace and number wanted; the age is that of the oldest count. What came in stays as it was."""
    first, second = counted(A, 2, [1, 5, 0], 1, 3, 100), counted(A, 2, [2, 7, 1], 2, 4, 900)
    other, changing = counted(B, 3, [0, 0, 4, 0], 0, 4, 5), counted(A, 3, [0, 1, 0, 0], 1, 0, 5)
    assert added_up([first, other, second, changing]) == [
        counted(A, 2, [3, 12, 1], 3, 7, 900),
        changing,
        other,
    ]
    assert first.blocks_on == [1, 5, 0]
    assert added_up([]) == []


def test_a_model_that_one_node_knows_is_named() -> None:
    """Another may have the blocks from its disks only."""
    nameless, named = counted(A, 2, [1, 0, 0], 1, 0, 1), counted(A, 2, [1, 0, 0], 1, 0, 1)
    named.model = "llama"
    (total,) = added_up([nameless, named])
    assert total.model == "llama"
