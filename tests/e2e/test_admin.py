"""Every verb of `kvstore admin` against a real two-node cluster, as tables and as JSON."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.operating import BLOCKS, SOURCE, Operator, operator_of
from tests.waiting import eventually


@pytest.fixture
async def operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Operator]:
    async with operator_of(tmp_path, capsys) as operator:
        yield operator


async def test_what_there_is(operator: Operator) -> None:
    """stats, loads, nodes, lanes, devices, blocks, explain, check, ttl: what was stored and loaded is in each."""
    stats = await operator.json("stats")
    by_name = {node["node_id"]: node["usage"] for node in stats["nodes"]}
    (held,) = by_name["a"]["namespaces"]
    assert (held["model"], held["tiers"][0]["blocks"]) == ("test", str(BLOCKS))
    (way,) = by_name["b"]["routes"]
    assert (way["route"], way["tier"], way["bytes"]) == ("peer", "TIER_DRAM", str(SOURCE.nbytes))
    assert way["last_1min_bytes"] == way["bytes"]
    assert sum(map(int, by_name["a"]["ttl"]["counts"])) == BLOCKS
    (asked,) = stats["namespaces"]
    assert int(asked["matched_blocks"]) == int(stats["matched_1min_blocks"]) >= BLOCKS
    table = await operator.run("stats")
    for words in ("hit ratio", "namespaces", "tenants", "default", "peer", "time that is left"):
        assert words in table

    (load,) = (await operator.json("loads", "--all"))["nodes"][1]["usage"]["loads"]
    assert (load["ended"], load["arrived_bytes"], load["bytes"]) == (True, str(SOURCE.nbytes), str(SOURCE.nbytes))
    assert "peer from a (DRAM)" in await operator.run("loads", "--all")
    assert not (await operator.json("loads"))["nodes"][1]["usage"]["loads"]

    assert [node["alive"] for node in (await operator.json("nodes"))["nodes"]] == [True, True]
    assert "alive" in await operator.run("nodes")
    assert "compute-in" in await operator.run("lanes")
    assert "devices" in await operator.run("devices")
    blocks, named = operator.prompt()[0], operator.prompt()[1:]
    assert "DRAM" in await operator.run("blocks", "--tokens", blocks, *named)
    explained = await operator.json("explain", *operator.prompt())
    assert [block["verdict"] for block in explained["blocks"]] == ["here"] * BLOCKS
    assert "2 of 2 nodes" in await operator.run("check")
    assert "sliding" in await operator.run("ttl", "get")


async def test_what_is_pinned(operator: Operator) -> None:
    """pin, pins, unpin: by the prompt on every node that has it, and by a key; listed with what is left, then ended."""
    pinned = await operator.json("pin", *operator.prompt(), "--for", "2h")
    (node,) = pinned["nodes"]
    assert (node["node_id"], node["pin"]["blocks"], node["pin"]["bytes"]) == ("a", str(BLOCKS), str(SOURCE.nbytes))
    listed = {node["node_id"]: node["pins"] for node in (await operator.json("pins"))["nodes"]}
    (pin,) = listed["a"]["pins"]
    assert (pin["pin_id"], pin["model"], listed["b"]["pins"]) == (pinned["pin_id"], "test", [])
    assert 7_190_000 < int(pin["remaining_ms"]) <= 7_200_000
    assert (listed["a"]["pinned_bytes"], listed["a"]["pinned_bytes_max"]) == (str(SOURCE.nbytes), str(16 * 2**20))
    stats = await operator.json("stats")
    assert stats["nodes"][0]["usage"]["counters"]["operator_pinned_bytes"] == str(SOURCE.nbytes)
    key = (await operator.json("explain", *operator.prompt()))["blocks"][-1]["key"]
    last = base64.b64decode(key).hex()
    assert "unpin" in await operator.run("pin", last, "--for", "90s")
    table = await operator.run("pins")
    assert last in table
    assert table.count("test") == 2

    pins = (await operator.json("pins"))["nodes"][0]["pins"]["pins"]
    ids = [base64.b64decode(pin["pin_id"]).hex() for pin in pins]
    assert len(ids) == 2
    (ended,) = (await operator.json("unpin", ids[0]))["nodes"]
    assert ended["pin"]["blocks"] == str(BLOCKS)
    assert "has ended" in await operator.run("unpin", ids[1])
    assert not (await operator.json("pins"))["nodes"][0]["pins"]["pins"]
    for words in (["unpin", ids[0]], ["pin", "00" * 16, "--for", "2h"], ["pin", last, "--for", "0s"]):
        await operator.run(*words, code=2)


async def test_what_is_purged(operator: Operator) -> None:
    """purge: counted first, then gone from the node, tier by tier; by prefix, namespace and tenant."""
    keys = [
        base64.b64decode(block["key"]).hex() for block in (await operator.json("explain", *operator.prompt()))["blocks"]
    ]
    counted = await operator.json("purge", "--prefix", *operator.prompt(), "--skip-blocks", "1")
    first, second = counted["nodes"]
    assert (counted["dry_run"], first["purged"]["blocks"], second["purged"]["blocks"]) == (True, str(BLOCKS - 1), "0")
    assert "would be dropped" in await operator.run("purge", "--prefix", keys[-1])
    assert "here" in await operator.run("explain", *keys)
    assert "1 blocks were dropped" in await operator.run("purge", "--prefix", keys[-1], "--yes")
    explained = await operator.json("explain", *keys)
    assert [block["verdict"] for block in explained["blocks"]] == ["here"] * (BLOCKS - 1) + ["purged"]

    namespace_id = operator.writer.namespace.id.hex()
    (left,) = (await operator.json("purge", "--namespace", namespace_id, "--yes"))["nodes"][0]["purged"]["tiers"]
    assert (left["tier"], left["copies"]) == ("TIER_DRAM", str(BLOCKS - 1))
    await operator.fill()
    assert f"{BLOCKS} blocks were dropped" in await operator.run("purge", "--tenant", "default", "--yes")
    stats = await operator.json("stats")
    assert stats["nodes"][0]["usage"]["tiers"][0]["gone"] == {"purged": str(2 * BLOCKS)}
    assert "purged" in await operator.run("stats")
    for words in (["--tenant", "default", "--skip-blocks", "1"], ["--prefix", operator.prompt()[0]]):
        await operator.run("purge", *words, code=2)


async def test_what_tenants_may_hold(operator: Operator) -> None:
    """quota set, get, remove: the tenant gives up what is over it, and stats shows both figures."""
    half = SOURCE.nbytes // 2
    told = await operator.json("quota", "set", "default", "--dram", str(half), "--nvme", "1GiB")
    assert told["book"]["quotas"] == {"default": {"dram_bytes": str(half), "nvme_bytes": str(2**30)}}
    assert [node["error"] for node in told["nodes"]] == ["", ""]
    assert "2 of 2 nodes follow" in await operator.run("quota", "set", "other", "--dram", "0")

    async def held() -> Any:
        known = await operator.json("quota", "get", "default")
        (usage,) = known["nodes"][0]["tenants"]
        return usage if usage["dram_bytes"] == str(half) else None

    assert (await eventually(held))["quota"]["dram_bytes"] == str(half)
    assert "100%" in await operator.run("quota", "get")
    assert "quotas" in await operator.run("stats")
    usages = {node["node_id"]: node["usage"] for node in (await operator.json("stats"))["nodes"]}
    assert {each["tenant"]: each["dram_bytes"] for each in usages["a"]["tenants"]} == {
        "default": str(half),
        "other": "0",
    }
    assert usages["a"]["tiers"][0]["gone"] == {"evicted_quota": str(BLOCKS // 2)}
    assert "2 of 2 nodes follow" in await operator.run("quota", "remove", "other")
    assert set((await operator.json("quota", "remove", "default"))["book"]["quotas"]) == set()
    for words in (["remove", "other"], ["set", "other"]):
        await operator.run("quota", *words, code=2)
