"""Results of every bench that a report draws, in their form, with figures that somebody made up."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from kvbench import noise
from kvbench.result import Result

MACHINE = {
    "cpus": 2,
    "cpu": "Some CPU",
    "kernel": "6.18",
    "transports": "tcp",
    "memory_bytes": 24 * 2**30,
    "nics": {"eth0": "25000 Mbit/s", "lo": "speed unknown"},
    "disks": [{"name": "nvme0n1", "model": "Some SSD", "bytes": 960_197_124_096, "rotates": False}],
    "gpus": [],
    "versions": {"kvstore": "0.1.0", "grpcio": "1.85.3"},
}
KIB, MIB = 1024, 1024 * 1024


def made(
    bench: str, keys: Sequence[str], rows: list[dict[str, Any]], ratios: dict[str, float] | None = None, **more: Any
) -> Result:
    settings = more.pop("settings", {"rounds": 3})
    return Result(bench, MACHINE, settings, tuple(keys), rows, ratios or {}, more.pop("warnings", []), more)


def three(value: float) -> dict[str, float]:
    return noise.summary([value * 0.95, value, value * 1.06])


def transfer() -> Result:
    peak = {
        "fabric": 2.1,
        "fabric, checksums": 1.8,
        "socket": 3.1,
        "ucx_perftest": 2.8,
        "client.load": 1.1,
        "client.load, checksums": 1.0,
    }
    rows = [
        {
            "contestant": name,
            "size_bytes": size,
            "in_flight": depth,
            "gb_per_s": three(top * size / (size + 300 * KIB / depth)),
        }
        for (name, top), size, depth in product(peak.items(), (256 * KIB, MIB, 4 * MIB, 20 * MIB), (1, 8))
    ]
    settings = {"transport": "tcp", "chosen": "tcp"}
    keys = ("contestant", "size_bytes", "in_flight")
    return made("transfer", keys, rows, {"vs_socket": 0.65}, settings=settings, warnings=["noisy machine: <b>very</b>"])


def ops() -> Result:
    rows: list[dict[str, Any]] = []
    base_ms = {"put": 1.7, "get": 1.8, "get-remote": 4.0, "memcpy": 0.001}
    for name, size, batch, count in product(base_ms, (4 * KIB, 256 * KIB, 20 * MIB), (1, 16), (1, 16)):
        if name != "memcpy" or count == 1:
            ms = (base_ms[name] + size * batch / 3e6) * count
            keys = {"operation": name, "block_bytes": size, "batch": batch, "concurrency": count}
            rows.append(keys | {"ms": three(ms), "gb_per_s": three(size * batch * count / ms / 1e6)})
    rows += [{"operation": "rpc", "concurrency": count, "ms": three(0.5 * count)} for count in (1, 16)]
    rows += [
        {"operation": "match", "batch": batch, "concurrency": count, "ms": three(0.7 * count)}
        for batch, count in product((1, 16), (1, 16))
    ]
    return made("ops", ("operation", "block_bytes", "batch", "concurrency"), rows, {"put_in_rpcs": 3.4})


def local() -> Result:
    speed = {"memcpy": 4.9, "memcpy + xxh3": 3.1, "store": 3.6, "load": 3.7, "load, checksums": 2.3}
    rows = [
        {"path": name, "block_bytes": size, "gb_per_s": three(top)}
        for (name, top), size in product(speed.items(), (MIB, 4 * MIB))
    ]
    return made("local", ("path", "block_bytes"), rows, {"vs_memcpy": 0.73})


def nvme() -> Result:
    rows = [
        {
            "contestant": name,
            "operation": operation,
            "block_bytes": size,
            "depth": 8,
            "compression": "plain",
            "gb_per_s": three(top * size / (size + 64 * KIB)),
        }
        for (name, top), operation, size in product(
            {"tier": 1.5, "fio": 1.6}.items(), ("read", "write"), (256 * KIB, 2 * MIB)
        )
    ]
    return made("nvme", ("contestant", "operation", "block_bytes", "depth", "compression"), rows)


def tiers() -> Result:
    rows = [
        {
            "source": one,
            "target": other,
            "gb_per_s": three(speed),
            "limit": "memcpy",
            "limit_gb_per_s": three(speed * 1.4),
        }
        for (one, other), speed in {("DRAM", "DRAM"): 4.0, ("DRAM", "NVMe"): 1.4, ("remote", "DRAM"): 1.1}.items()
    ]
    return made("tiers", ("source", "target"), [*rows, {"source": "HBM", "target": "DRAM", "why_not": "no GPU"}])


def peers() -> Result:
    rows = [
        {"contest": contest, "contestant": name, "size_bytes": size, "blocks": 32, "gb_per_s": three(top)}
        for contest, speeds in {
            "get": {"kvstore": 0.9, "Mooncake's store": 1.0},
            "put": {"kvstore": 2.0, "Mooncake's store": 7.0},
            "transfer": {"kvstore fabric": 2.0, "mooncake transfer engine": 1.3, "nixl": 1.3},
        }.items()
        for (name, top), size in product(speeds.items(), (MIB, 4 * MIB))
    ]
    rows.append({"contest": "storage node killed", "contestant": "kvstore", "failed": 0})
    return made("peers", ("contest", "contestant", "size_bytes"), rows)


def dualpath(helpers: int = 1, fault: object = None) -> Result:
    rates = {"prefill-1": 500, **{f"decode-{number + 1}": 500 for number in range(helpers)}}
    rows = [{"path": "dual", "gb_per_s": three(0.06 * (1 + helpers))}, {"path": "single", "gb_per_s": three(0.06)}]
    ratios = {"dual_vs_single": 0.99 * (1 + helpers), "of_limit": 0.99}
    return made("dualpath", ("path", "nic"), rows, ratios, settings={"snic_mbit": rates, "fault": fault})


def serving(bench: str = "agents") -> Result:
    rows = [
        {
            "way": way,
            "goodput_per_s": best,
            "hit_ratio": 0.97,
            "curves": {
                name: [[scale * (0.2 + 3 * (share / 50) ** 3), share / 50] for share in range(51)]
                for name, scale in {"ttft_s": 4 / best, "tpot_s": 0.02, "second_token_s": 5 / best}.items()
            },
            "tried": [
                {"rate": rate / 2, "attained": 1 / (1 + math.exp(4 * (rate / 2 - best) - 2)), "requests": 90}
                for rate in range(1, 9)
            ],
        }
        for way, best in {"no cache": 0.6, "single path": 1.4, "dual path": 2.4, "oracle": 3.1}.items()
    ]
    settings = {"ttft_s": 4.0, "tpot_s": 0.05, "shape": "64K"}
    return made(bench, ("way",), rows, {"dual_vs_single": 1.7}, settings=settings)


def replay() -> Result:
    rows = [
        {
            "policy": policy,
            "tier_blocks": blocks,
            "ttl_s": ttl_s,
            "hit_ratio": 0.366
            * gain
            * (1 - math.exp(-(blocks or 1e6) / 12000))
            * (1 - math.exp(-(ttl_s or 1e5) / 400)),
            "belady": 0.366,
        }
        for (policy, gain), blocks, ttl_s in product(
            {"lru": 0.96, "likely": 0.99}.items(), (0, 5000, 10000, 20000, 50000), (0, 300, 600, 1800)
        )
    ]
    return made(
        "replay", ("policy", "tier_blocks", "ttl_s"), rows, ideal_hit_ratio=0.37, settings={"ttl_kind": "sliding"}
    )


def match() -> Result:
    parts = {"client.match": 3.6, "index look-up": 2.3, "prefix": 0.25, "reply": 0.04, "smallest RPC": 0.6}
    rows = [{"part": part, "ms": three(ms)} for part, ms in parts.items()]
    return made("match", ("part",), rows, settings={"blocks": 10_000_000}, p50_ms=3.6)


def models() -> Result:
    return made("models", ("model",), [{"model": "a|b", "token_bytes": 70272}])


def all_of_them() -> list[Result]:
    return [
        *(transfer(), ops(), local(), nvme(), tiers(), peers()),
        *(dualpath(count) for count in (1, 2, 3)),
        *(dualpath(1, {"kind": "kill"}), serving("goodput"), serving("agents"), replay(), match(), models()),
    ]
