"""How many copies there are of the blocks of namespaces that want several, as a table."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from kvstore.cli.tables import table
from kvstore.pb import node_pb2


def copies_table(copies: Sequence[node_pb2.NamespaceCopies]) -> Table:
    """A column per number of nodes."""
    most = max(each.wanted for each in copies)
    on = [f"on {nodes}" for nodes in range(1, most + 1)]
    return table(
        ("namespace", "model", "tenant", "copies", *on, "on more", "owed", "durable", "counted"),
        (tuple(_cells(each, most)) for each in copies),
        title="copies",
    )


def _cells(copies: node_pb2.NamespaceCopies, most: int) -> Iterator[str]:
    yield from (copies.namespace_id.hex(), copies.model or "–", copies.tenant, str(copies.wanted))
    *on, more = copies.blocks_on
    yield from (f"{blocks:,}" for blocks in on)
    yield from ("–" for _ in range(most - copies.wanted))
    yield f"{more:,}"
    yield f"{copies.copies_owed:,}"
    yield f"{copies.durable_blocks:,}"
    yield f"{copies.counted_ms_ago / 1000:.0f} s ago"
