"""Frames of `kvstore admin top`: what control plane and nodes answer, as JSON and as tables. No I/O, no clock."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvstore.cli.admin_stats import ratio
from kvstore.cli.tables import bar, shown_bytes, table
from kvstore.control.page import view
from kvstore.control.page.rates import Rates
from kvstore.control.page.source import Look

LOADS_SHOWN = 20
_STATES = {view.UP: "up", view.MUTE: "no answer", view.DOWN: "down"}


class Frames:
    """Remembers what lanes had moved at the look before."""

    def __init__(self) -> None:
        self._rates = Rates()

    def of(self, look: Look, now_ms: int) -> dict[str, Any]:
        """bytes_per_s of lanes: since the look before; 0 at a node's first."""
        rates: dict[tuple[str, str], float] = {}
        for node in look.stats.nodes:
            if node.reachable:
                moved = {lane.lane: lane.moved_bytes for lane in node.usage.lanes}
                risen, span_ms = self._rates.risen(node.node_id, node.usage.node.incarnation, moved, now_ms)
                rates |= {(node.node_id, lane): count * 1000 / max(1, span_ms) for lane, count in risen.items()}
        self._rates.keep([node.node_id for node in look.stats.nodes])
        seen = view.cluster(look, rates)
        return {
            "at_ms": now_ms,
            "asked_1min_blocks": look.stats.asked_1min_blocks,
            "matched_1min_blocks": look.stats.matched_1min_blocks,
            "index": seen["index"],
            "nodes": seen["nodes"],
            "loads": [load for load in seen["loads"] if not load["ended"]],
            "error": "",
        }


def screen(frame: Mapping[str, Any]) -> RenderableType:
    """A frame, or what is left of the last one with the error of this one."""
    shown = [Text(part) if isinstance(part, str) else part for part in parts(frame)] if "nodes" in frame else []
    error = [Text(frame["error"], style="bold red")] if frame.get("error") else []
    return Group(*shown, *error, Text("q: end", style="dim"))


def parts(frame: Mapping[str, Any]) -> list[Table | str]:
    """Without tables that would be empty."""
    nodes, loads = frame["nodes"], frame["loads"]
    moment = datetime.fromtimestamp(frame["at_ms"] / 1000).isoformat(sep=" ", timespec="seconds")
    up = sum(node["state"] == view.UP for node in nodes)
    hits = ratio(frame["matched_1min_blocks"], frame["asked_1min_blocks"])
    head = (
        f"{moment[11:]}   nodes {up} of {len(nodes)} up   blocks {frame['index']['blocks']:,}"
        f"   hit ratio, 1 min {hits}   loads {len(loads):,}"
    )
    lanes = table(("node", "lane", "now", "of", "queued"), (row for node in nodes for row in _lanes(node)), "lanes")
    running = table(
        ("node", "load", "tenant", "blocks", "progress", "ways", "age"),
        (_load(load) for load in loads[:LOADS_SHOWN]),
        "loads" if len(loads) <= LOADS_SHOWN else f"loads, {LOADS_SHOWN} of {len(loads):,}",
    )
    filled = table(
        ("node", "state", "tier", "live", "of", "fill"), (row for node in nodes for row in _tiers(node)), "nodes"
    )
    return [head, filled, *(each for each in (lanes, running) if each.row_count)]


def _tiers(node: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """A row per tier; one also for a node that says nothing."""
    head = (node["id"], _STATES[node["state"]])
    for tier in node["tiers"] or [None]:
        if tier is None:
            yield head
        else:
            live, capacity = tier["live_bytes"], tier["capacity_bytes"]
            yield (*head, tier["tier"], shown_bytes(live), shown_bytes(capacity), bar(live, capacity))
        head = ("", "")


def _lanes(node: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    name = node["id"]
    for lane in node["lanes"]:
        limit, rate = lane["limit_bytes_per_s"], lane["bytes_per_s"]
        of = f"{shown_bytes(limit)}/s" if limit else "–"
        yield (name, lane["lane"], f"{shown_bytes(rate)}/s", of, shown_bytes(lane["queued_bytes"]))
        name = ""


def _load(load: Mapping[str, Any]) -> Sequence[str]:
    ways = ", ".join(f"{path['route']} from {path['node']} {shown_bytes(path['bytes'])}" for path in load["paths"])
    return (
        load["node"],
        str(load["number"]),
        load["tenant"],
        f"{load['blocks']:,} of {load['asked']:,}",
        bar(load["arrived_bytes"], load["bytes"]),
        ways or "–",
        f"{load['age_ms'] / 1000:.2f} s",
    )
