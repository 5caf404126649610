"""Every verb of `kvstore admin` against a real two-node cluster, as tables and as JSON."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.operating import BLOCKS, SOURCE, TESTED, Operator, operator_of, runs, verbs
from tests.waiting import eventually

BOTH = {"TIER_DRAM": str(BLOCKS), "TIER_NVME": str(BLOCKS)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Operator]:
    async with operator_of(tmp_path_factory.mktemp("shared")) as operator:
        yield operator


@pytest.fixture
def operator(shared: Operator, capsys: pytest.CaptureFixture[str]) -> Operator:
    """Of a cluster that several tests share: the same blocks are there after each, and no rule, pin or quota."""
    return shared.begin(capsys)


@pytest_asyncio.fixture(loop_scope="module")
async def alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Operator]:
    """Of a cluster that the test may change as it likes."""
    async with operator_of(tmp_path) as operator:
        yield operator.begin(capsys)


def test_every_verb_has_a_test() -> None:
    """Below; a new one needs one too."""
    assert verbs() == TESTED


def hex_of(text: str) -> str:
    """Bytes, as JSON has them."""
    return base64.b64decode(text).hex()


async def keys_of(operator: Operator) -> list[str]:
    return [hex_of(block["key"]) for block in (await operator.json("explain", *operator.prompt()))["blocks"]]


async def usage_of(operator: Operator, node: str) -> dict[str, Any]:
    (usage,) = [each["usage"] for each in (await operator.json("stats"))["nodes"] if each["node_id"] == node]
    held: dict[str, Any] = usage
    return held


async def durable(operator: Operator) -> bool:
    usage = await usage_of(operator, "a")
    return bool(usage["counters"]["durable_blocks"] == str(BLOCKS))


@runs("stats", "loads", "nodes", "lanes", "blocks", "explain", "check", "top")
async def test_what_there_is(operator: Operator) -> None:
    """What was stored and loaded is in each."""
    stats = await operator.json("stats")
    by_name = {node["node_id"]: node["usage"] for node in stats["nodes"]}
    (held,) = by_name["a"]["namespaces"]
    assert (held["model"], held["tiers"][0]["blocks"]) == ("test", str(BLOCKS))
    (way,) = by_name["b"]["routes"]
    assert (way["route"], way["bytes"]) == ("peer", str(SOURCE.nbytes))
    assert way["last_1min_bytes"] == way["bytes"]
    assert sum(map(int, by_name["a"]["ttl"]["counts"])) == BLOCKS
    (asked,) = stats["namespaces"]
    assert int(asked["matched_blocks"]) == int(stats["matched_1min_blocks"]) >= BLOCKS
    assert [(each["tier"], each["blocks"]) for each in stats["matched_tiers"]] == [
        ("TIER_DRAM", asked["matched_blocks"])
    ]
    table = await operator.run("stats")
    for words in ("hit ratio", "namespaces", "tenants", "default", "peer", "time that is left", "devices"):
        assert words in table

    (load,) = [load for node in (await operator.json("loads", "--all"))["nodes"] for load in node["usage"]["loads"]]
    assert (load["ended"], load["arrived_bytes"], load["bytes"]) == (True, str(SOURCE.nbytes), str(SOURCE.nbytes))
    assert "peer from a" in await operator.run("loads", "--all")
    assert not any(node["usage"]["loads"] for node in (await operator.json("loads"))["nodes"])

    assert [node["alive"] for node in (await operator.json("nodes"))["nodes"]] == [True, True]
    assert "alive" in await operator.run("nodes")
    moved = {lane["lane"]: int(lane["moved_bytes"]) for lane in by_name["b"]["lanes"]}
    assert moved["compute-in"] == SOURCE.nbytes
    assert (await operator.json("lanes"))["nodes"][0]["usage"]["lanes"]
    assert "compute-in" in await operator.run("lanes")
    prompt, *named = operator.prompt()
    located = await operator.json("blocks", "--tokens", prompt, *named)
    assert [block["locations"][0]["node_id"] for block in located["blocks"]] == ["a"] * BLOCKS
    assert "DRAM" in await operator.run("blocks", "--tokens", prompt, *named)
    explained = await operator.json("explain", *operator.prompt())
    assert [block["verdict"] for block in explained["blocks"]] == ["here"] * BLOCKS
    assert f"{BLOCKS} of {BLOCKS} blocks match" in await operator.run("explain", *operator.prompt())
    assert not any(node["usage"]["violations"] for node in (await operator.json("check"))["nodes"])
    assert "2 of 2 nodes" in await operator.run("check")
    frame = await operator.json("top", "--interval", "100ms")
    assert {node["id"] for node in frame["nodes"]} == {"a", "b"}
    assert "compute-in" in await operator.run("top", "--interval", "100ms")


@runs("watch")
async def test_what_happens(operator: Operator) -> None:
    """What happened before is told, and the command goes on until it is interrupted."""
    event = json.loads(await operator.line("watch", "--past", "100", "--kind", "node_registered", "--json"))
    assert event["node_id"] in ("a", "b")
    assert "registered" in await operator.line("watch", "--past", "100", "--kind", "node_registered")


@runs("ttl get", "ttl set", "ttl remove")
async def test_how_long_blocks_live(operator: Operator) -> None:
    """Told to both nodes, and in force there."""
    told = await operator.json("ttl", "set", "test", "--ttl", "2h")
    assert [node["error"] for node in told["nodes"]] == ["", ""]
    for node in (await operator.json("ttl", "get"))["nodes"]:
        assert [each["rules"]["ttl_ms"] for each in node["rules"]["namespaces"]] == ["7200000"]
    assert "2 of 2 nodes follow" in await operator.run("ttl", "set", "other*", "--kind", "fixed")
    assert "2h" in await operator.run("ttl", "get")
    assert set((await operator.json("ttl", "remove", "other*"))["book"]["rules"]) == {"test"}
    assert "2 of 2 nodes follow" in await operator.run("ttl", "remove", "test")
    await operator.run("ttl", "remove", "test", code=2)


@runs("log-level")
async def test_what_is_logged(operator: Operator) -> None:
    """Of a node, and of the control plane."""
    assert (await operator.json("log-level", "a", "debug"))["before"] == "info"
    assert await operator.run("log-level", "a", "info") == "the level was debug\n"
    assert (await operator.json("log-level", "control", "warning"))["before"] == "info"
    assert (await operator.json("log-level", "control", "info"))["before"] == "warning"
    await operator.run("log-level", "nobody", "debug", code=2)


@runs("devices", "device", "scrub")
async def test_devices(operator: Operator) -> None:
    """What is on one is verified; it is taken out of service, and into it again with all that it had."""
    await eventually(lambda: durable(operator))
    path = str(operator.here.folder / "a")
    scrubbed = await operator.json("scrub", "a", "--wait")
    assert (scrubbed["blocks"], scrubbed["looked_at"]) == (str(BLOCKS), str(BLOCKS))
    assert (scrubbed["corrupt_dropped"], scrubbed["mended_headers"]) == ("0", "0")
    shown = await operator.run("scrub", "a", "--status")
    assert "ended" in shown
    assert "headers mended" in shown
    (device,) = (await operator.json("device", "disable", "a", path))["devices"]
    assert (device["path"], device["in_service"]) == (path, False)
    shown = await operator.run("devices")
    assert "no" in next(line for line in shown.splitlines() if path in line)
    assert path in await operator.run("device", "enable", "a", path)
    await eventually(lambda: durable(operator))
    devices = [each for node in (await operator.json("devices"))["nodes"] for each in node["usage"]["devices"]]
    assert [device["in_service"] for device in devices] == [True, True]
    await operator.run("device", "disable", "a", "/nowhere", code=2)


@runs("pin", "pins", "unpin")
async def test_what_is_pinned(operator: Operator) -> None:
    """By the prompt on every node that has it, and by a key; listed with what is left, then ended."""
    pinned = await operator.json("pin", *operator.prompt(), "--for", "2h")
    (node,) = pinned["nodes"]
    assert (node["node_id"], node["pin"]["blocks"], node["pin"]["bytes"]) == ("a", str(BLOCKS), str(SOURCE.nbytes))
    listed = {node["node_id"]: node["pins"] for node in (await operator.json("pins"))["nodes"]}
    (pin,) = listed["a"]["pins"]
    assert (pin["pin_id"], pin["model"], listed["b"]["pins"]) == (pinned["pin_id"], "test", [])
    assert 7_190_000 < int(pin["remaining_ms"]) <= 7_200_000
    assert (listed["a"]["pinned_bytes"], listed["a"]["pinned_bytes_max"]) == (str(SOURCE.nbytes), str(16 * 2**20))
    assert (await usage_of(operator, "a"))["counters"]["operator_pinned_bytes"] == str(SOURCE.nbytes)
    last = (await keys_of(operator))[-1]
    assert "unpin" in await operator.run("pin", last, "--for", "90s")
    table = await operator.run("pins")
    assert last in table
    assert table.count("test") == 2

    pins = (await operator.json("pins"))["nodes"][0]["pins"]["pins"]
    first, second = [hex_of(pin["pin_id"]) for pin in pins]
    (ended,) = (await operator.json("unpin", first))["nodes"]
    assert ended["pin"]["blocks"] == str(BLOCKS)
    assert "has ended" in await operator.run("unpin", second)
    assert not (await operator.json("pins"))["nodes"][0]["pins"]["pins"]
    for words in (["unpin", first], ["pin", "00" * 16, "--for", "2h"], ["pin", last, "--for", "0s"]):
        await operator.run(*words, code=2)


@runs("purge")
async def test_what_is_purged(alone: Operator) -> None:
    """Counted first, then gone from the node, tier by tier; by prefix, namespace and tenant."""
    await eventually(lambda: durable(alone))
    keys = await keys_of(alone)
    counted = await alone.json("purge", "--prefix", *alone.prompt(), "--skip-blocks", "1")
    first, second = counted["nodes"]
    assert (counted["dry_run"], first["purged"]["blocks"], second["purged"]["blocks"]) == (True, str(BLOCKS - 1), "0")
    assert "would be dropped" in await alone.run("purge", "--prefix", keys[-1])
    assert "here" in await alone.run("explain", *keys)
    assert "1 blocks were dropped" in await alone.run("purge", "--prefix", keys[-1], "--yes")
    explained = await alone.json("explain", *keys)
    assert [block["verdict"] for block in explained["blocks"]] == ["here"] * (BLOCKS - 1) + ["purged"]

    namespace_id = alone.writer.namespace.id.hex()
    purged = (await alone.json("purge", "--namespace", namespace_id, "--yes"))["nodes"][0]["purged"]
    assert {tier["tier"]: tier["copies"] for tier in purged["tiers"]} == dict.fromkeys(BOTH, str(BLOCKS - 1))
    await alone.store()
    assert f"{BLOCKS} blocks were dropped" in await alone.run("purge", "--tenant", "default", "--yes")
    gone = (await usage_of(alone, "a"))["tiers"][0]["gone"]
    assert gone == {"purged": str(2 * BLOCKS)}
    assert "purged" in await alone.run("stats")
    for words in (["--tenant", "default", "--skip-blocks", "1"], ["--prefix", alone.prompt()[0]]):
        await alone.run("purge", *words, code=2)


@runs("quota set", "quota get", "quota remove")
async def test_what_tenants_may_hold(alone: Operator) -> None:
    """The tenant gives up what is over it, and stats shows both figures."""
    half = SOURCE.nbytes // 2
    told = await alone.json("quota", "set", "default", "--dram", str(half), "--nvme", "1GiB")
    assert told["book"]["quotas"] == {"default": {"dram_bytes": str(half), "nvme_bytes": str(2**30)}}
    assert [node["error"] for node in told["nodes"]] == ["", ""]
    assert "2 of 2 nodes follow" in await alone.run("quota", "set", "other", "--dram", "0")

    async def held() -> Any:
        known = await alone.json("quota", "get", "default")
        (usage,) = known["nodes"][0]["tenants"]
        return usage if usage["dram_bytes"] == str(half) else None

    assert (await eventually(held))["quota"]["dram_bytes"] == str(half)
    assert "100%" in await alone.run("quota", "get")
    assert "quotas" in await alone.run("stats")
    usage = await usage_of(alone, "a")
    assert {each["tenant"]: each["dram_bytes"] for each in usage["tenants"]} == {"default": str(half), "other": "0"}
    assert usage["tiers"][0]["gone"] == {"evicted_quota": str(BLOCKS // 2)}
    assert "2 of 2 nodes follow" in await alone.run("quota", "remove", "other")
    assert set((await alone.json("quota", "remove", "default"))["book"]["quotas"]) == set()
    for words in (["remove", "other"], ["set", "other"]):
        await alone.run("quota", *words, code=2)


@runs("export", "import")
async def test_into_a_file_and_back(operator: Operator) -> None:
    """What was exported and purged is imported, and loaded byte for byte."""
    file, space = str(operator.here.folder / "exported"), operator.writer.namespace.id.hex()
    said = await operator.json("export", file, "--namespace", space)
    assert (said["blocks"], said["missing"]) == (BLOCKS, 0)
    assert "exported" in await operator.run("export", f"{file}2", "--namespace", space)
    await operator.run("purge", "--namespace", space, "--yes")
    assert (await operator.json("import", file, "--node", "a"))["stored"] == BLOCKS
    await operator.load()
    assert "imported" in await operator.run("import", f"{file}2", "--node", "a")
    await operator.run("export", file, "--namespace", "00" * 16, code=2)


@runs("drain", "undrain")
async def test_a_node_is_emptied_for_its_end(alone: Operator) -> None:
    """What it has is moved to the other one, and it may be stopped; or it is put into service again."""
    assert "it is in service" in await alone.run("drain", "a", "--status")
    told = await alone.json("drain", "a", "--yes")
    assert (told["done"], told["moved_blocks"], told["left"]) == (True, str(BLOCKS), "0")
    assert (await alone.json("undrain", "a"))["draining"] is False
    assert "in service" in await alone.run("undrain", "a")
    await alone.run("drain", "nobody", code=2)


@runs("adopt")
async def test_a_directory_of_a_node_that_is_gone(alone: Operator) -> None:
    """Refused while it lives; then its blocks are served by the other one, and given back."""
    await eventually(lambda: durable(alone))
    path = str(alone.here.folder / "a")
    await alone.run("adopt", "b", path, code=2)
    await alone.nodes[0].kill()

    async def lost() -> bool:
        return [node["alive"] for node in (await alone.json("nodes"))["nodes"]].count(False) == 1

    await eventually(lost)
    adopted = await alone.json("adopt", "b", path)
    assert adopted["blocks"] == str(BLOCKS)
    await alone.load()
    assert "0 blocks of the directory are served" in " ".join(
        (await alone.run("adopt", "b", path, "--release")).split()
    )
