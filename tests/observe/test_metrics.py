"""Metrics: one table of names, and endpoints that show what the processes count."""

import asyncio
import re
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import grpc.aio
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from kvstore.client import AsyncClient, Match, buffers
from kvstore.config import MIB
from kvstore.errors import ConfigError, DeadlineExceeded
from kvstore.node.answers import ShardId
from kvstore.observe.families import Families
from kvstore.observe.histogram import Histogram
from kvstore.observe.words import CONTROL, EVERY_PROCESS, METRICS
from kvstore.pb import control_pb2, control_pb2_grpc
from kvstore.rpc.channel import caller, open_channel
from tests.cluster import LAYOUT, random_blocks
from tests.inprocess import Site, fabric_of, site, tokens
from tests.waiting import eventually

DOCUMENT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
ANY_PORT = "127.0.0.1:0"


async def scraped(url: str) -> dict[str, Metric]:
    """What an endpoint shows, by the names of its families (counters without _total)."""

    def get() -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.headers["content-type"].startswith("text/plain")
            return str(answer.read().decode())

    return {family.name: family for family in text_string_to_metric_families(await asyncio.to_thread(get))}


def value(families: dict[str, Metric], name: str, /, **labels: str) -> float:
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def ours(families: Iterable[Metric]) -> set[str]:
    names = {family.name + "_total" * (family.type == "counter") for family in families}
    return {name for name in names if name.startswith("kvstore_")}


def test_the_table() -> None:
    """docs/metrics.md has every metric with its kind, labels and meaning, and no other."""
    told = re.findall(r"^\| `(kvstore_\w+)` \| (\w+) \| ([\w, ]*) \| (\w+) \| (.+) \|$", DOCUMENT, re.MULTILINE)
    words = []
    for name, word in METRICS.items():
        who = "all" if name in EVERY_PROCESS else "control" if name in CONTROL else "node"
        words.append((name, word.kind, ", ".join(word.labels), who, word.help))
    assert told == words


def test_names_follow_prometheus() -> None:
    """What only rises ends in _total, and nothing else does; times are in seconds, sizes in bytes."""
    for name, word in METRICS.items():
        assert name.endswith("_total") == (word.kind == "counter"), name
        assert not re.search(r"_(ms|ns|us|kb|mb|mib|gib)(_|$)", name), name
        assert (word.kind != "histogram") or name.endswith("_seconds"), name


def test_a_histogram_counts_up_to_each_bound() -> None:
    """Buckets are cumulative, a bound belongs to its bucket, and the last one has everything."""
    histogram = Histogram((1.0, 2.0))
    for each in (0.5, 1.0, 1.5, 9.0):
        histogram.add(each)
    assert histogram.buckets() == [("1", 2.0), ("2", 3.0), ("+Inf", 4.0)]
    assert histogram.sum == 12.0


def test_only_words_are_shown() -> None:
    """A name that is not in the table, or labels that are not its word's, are a mistake of ours."""
    families = Families()
    with pytest.raises(KeyError):
        families.add("kvstore_made_up", 1)
    with pytest.raises(AssertionError):
        families.add("kvstore_pins", 1)


async def found(client: AsyncClient) -> Match:
    """A match of two blocks, once the control plane has been told of them."""

    async def whole() -> Match | None:
        match = await client.match(tokens(2))
        return match if match.blocks == 2 else None

    match = await eventually(whole)
    assert isinstance(match, Match)
    return match


async def loaded(here: Site, folder: Path) -> tuple[str, str]:
    """Two blocks that one node stored and a client of another loaded, and stored one of again, beside one that
    was purged; where the control plane and the
    second node show their numbers."""
    control = await here.control(metrics_listen=ANY_PORT)
    first = await here.node(control=control.address)
    second = await here.node(
        control=control.address,
        metrics_listen=ANY_PORT,
        nvme_paths=(str(folder),),
        nvme_bytes=64 * MIB,
        nvme_slab_bytes=16 * MIB,
    )
    writer, reader = await here.client(first), await here.client(second)
    kv = buffers.contiguous(random_blocks(LAYOUT, 2), LAYOUT)
    await writer.store(tokens(2), kv)
    await reader.load(await found(reader), buffers.contiguous(random_blocks(LAYOUT, 2), LAYOUT)).result()
    for seed in (0, 1):
        await reader.store(tokens(1, seed), kv)
    gone = reader.chain(tokens(1, 1))
    assert second.catalog.drop(gone.namespace_id, ShardId(0, 1), gone.keys[0], "purge")
    second.custody.settle()
    await eventually(lambda: second.loads.resources.counters["loaded_peer_bytes"])  # the load is settled
    return control.metrics.url, second.metrics.url


async def test_a_load_is_seen(tmp_path: Path) -> None:
    """Endpoints of real servers show a match and a load: its bytes, its pieces by route and tier, its calls by status;
    and all that is shown stands in the table, all of the table is shown."""
    async with site(tmp_path) as here:
        control_url, node_url = await loaded(here, tmp_path / "nvme")
        async with open_channel(here.nodes[0]._config.control) as channel:
            empty = control_pb2.MatchRequest(caller=caller("test"), namespace_id=bytes(16), shard_count=1)
            with pytest.raises(grpc.aio.AioRpcError):
                await control_pb2_grpc.ControlStub(channel).Match(empty)
        control, node = await scraped(control_url), await scraped(node_url)
    length = 2 * LAYOUT.block_bytes
    assert value(node, "kvstore_process_info", process="node", name="n1", version="0.1.0") == 1
    assert value(node, "kvstore_loads_total") == 1
    assert value(node, "kvstore_loaded_bytes_total", route="peer", tier="dram") == length
    assert value(node, "kvstore_load_piece_seconds_count", route="peer", tier="dram") > 0
    assert 0 < value(node, "kvstore_load_piece_seconds_sum", route="peer", tier="dram") < 60
    assert value(node, "kvstore_load_seconds_count", outcome="whole") == 1
    assert value(node, "kvstore_load_seconds_count", outcome="failed") == 0
    assert value(node, "kvstore_load_first_seconds_count") == 1
    assert value(node, "kvstore_lane_moved_bytes_total", lane="compute-in") == length
    assert value(node, "kvstore_stored_blocks_total") == 2
    assert value(node, "kvstore_tier_capacity_bytes", tier="dram") == 64 * MIB
    loads = [
        s.value
        for s in node["kvstore_rpc_seconds"].samples
        if s.name.endswith("_count") and "Node/Load" in s.labels.values()
    ]
    assert loads == [1]  # OK, or CANCELLED: a client ends a load that is through
    assert value(node, "kvstore_rpc_seconds_count", rpc="Node/Commit", code="OK") == 2
    assert value(control, "kvstore_node_up", node_id="n1") == 1
    assert value(control, "kvstore_nodes", state="alive") == 2
    assert value(control, "kvstore_match_found_blocks_total") >= 2
    assert value(control, "kvstore_rpc_seconds_count", rpc="Control/Match", code="OK") >= 1
    assert value(control, "kvstore_rpc_seconds_count", rpc="Control/Match", code="INVALID_ARGUMENT") == 1
    assert value(node, "kvstore_ttl_blocks", le="10") == 0
    assert value(node, "kvstore_ttl_blocks", le="+Inf") == 1
    assert value(node, "kvstore_gone_copies_total", tier="dram", reason="dropped_purge") == 1
    assert ours([*control.values(), *node.values()]) == METRICS.keys()


async def test_a_load_that_does_not_finish_is_failed(tmp_path: Path) -> None:
    """A load whose bytes do not come in time is an outcome of its own, and its call one that failed."""
    async with site(tmp_path) as here:
        control = await here.control()
        first = await here.node(control=control.address)
        second = await here.node(control=control.address, metrics_listen=ANY_PORT, progress_ms=60_000)
        writer, reader = await here.client(first), await here.client(second)
        kv = buffers.contiguous(random_blocks(LAYOUT, 2), LAYOUT)
        await writer.store(tokens(2), kv)
        match = await found(reader)
        fabric_of(first).faults.stalled = True

        async def counted() -> bool:
            """On a busy host a load's time can be over before the node has heard of it."""
            with pytest.raises(DeadlineExceeded):
                await reader.load(match, kv, deadline_s=0.2).result()
            return value(await scraped(second.metrics.url), "kvstore_load_seconds_count", outcome="failed") >= 1

        await eventually(counted)
        fabric_of(first).faults.stalled = False


async def test_no_endpoint_unless_asked_for(tmp_path: Path) -> None:
    """By default nothing listens, and no call is timed."""
    async with site(tmp_path) as here:
        control, node = await here.control(), await here.node()
        assert control.metrics.url == node.metrics.url == ""
        assert list(control.metrics.interceptors) == list(node.metrics.interceptors) == []


@pytest.mark.parametrize(
    ("listen", "why"),
    [("0.0.0.0:0", "behind a shut door neither: .*--insecure"), ("nowhere", "HOST:PORT"), ("127.0.0.1:x", "HOST")],
)
async def test_an_address_that_is_refused(tmp_path: Path, listen: str, why: str) -> None:
    """Numbers are not shown to other hosts by an address alone; what is no address is said to be none. Nothing of the
    server is left."""
    async with site(tmp_path) as here:
        with pytest.raises(ConfigError, match=rf"control\.metrics_listen.*{why}"):
            await here.control(metrics_listen=listen)
        with pytest.raises(ConfigError, match=rf"node\.metrics_listen.*{why}"):
            await here.node(metrics_listen=listen)
