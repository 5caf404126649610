"""The control plane's numbers, as metrics: its own, for the nodes show theirs themselves."""

from kvstore.control.directory import Directory
from kvstore.control.index.base import Index
from kvstore.control.matches import MatchCounters
from kvstore.observe.families import Families


async def show(index: Index, directory: Directory, counters: MatchCounters, now_ms: int, families: Families) -> None:
    """Puts them into a scrape."""
    families.add("kvstore_index_blocks", await index.blocks())
    families.add("kvstore_index_locations", sum(record.locations for record in await index.nodes()))
    families.add("kvstore_matches_total", counters.matches)
    families.add("kvstore_match_asked_blocks_total", counters.asked_blocks)
    families.add("kvstore_match_found_blocks_total", counters.matched_blocks)
    up = {state.address.node_id: directory.alive(state, now_ms) for state in directory.nodes()}
    for node_id, alive in up.items():
        families.add("kvstore_node_up", alive, node_id)
    families.add("kvstore_nodes", sum(up.values()), "alive")
    families.add("kvstore_nodes", len(up) - sum(up.values()), "silent")
