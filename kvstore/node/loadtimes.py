"""How long the loads of a node take, and what they had to do again. No I/O, no clock."""

from collections import Counter

from kvstore.blocks.state import Tier
from kvstore.node.loadlog import FAILED, PARTIAL, WHOLE, Entry
from kvstore.node.paths import Source
from kvstore.observe.families import Families
from kvstore.observe.histogram import Histogram

_RETRIES = ("checksum", "path_lost", "twice")


class LoadTimes:
    """All loads since the node's start. Belongs to the event loop."""

    def __init__(self) -> None:
        self._loads = {outcome: Histogram() for outcome in (WHOLE, PARTIAL, FAILED)}
        self._first = Histogram()
        self._pieces: dict[tuple[str, Tier], Histogram] = {}
        self._retries = Counter(dict.fromkeys(_RETRIES, 0))

    def piece(self, source: Source, took_ns: int) -> None:
        """One piece came, so long after it was asked for."""
        way = (source.route, source.tier)
        histogram = self._pieces.get(way)
        if histogram is None:
            histogram = self._pieces[way] = Histogram()
        histogram.add(took_ns / 1e9)

    def ended(self, entry: Entry, now_ns: int) -> None:
        """However it ended. What the client did after all was there is its own time."""
        progress = entry.progress
        self._loads[progress.outcome].add(((progress.done_ns or now_ns) - entry.began_ns) / 1e9)
        if progress.first_ns:
            self._first.add((progress.first_ns - entry.began_ns) / 1e9)
        self._retries.update(progress.retries)

    def show(self, families: Families) -> None:
        """Puts them into a scrape."""
        for outcome, histogram in self._loads.items():
            families.histogram("kvstore_load_seconds", histogram, outcome)
        families.histogram("kvstore_load_first_seconds", self._first)
        for (route, tier), histogram in self._pieces.items():
            families.histogram("kvstore_load_piece_seconds", histogram, route, tier.name.lower())
        for why, count in self._retries.items():
            families.add("kvstore_load_retries_total", count, why)
