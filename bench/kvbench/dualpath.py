"""A history comes from a storage node to a prefill node: over the reader's own storage NIC, and over every idle one.

Everything runs as real processes on the hosts of a testbed (network namespaces, so root is needed), with checksums on,
and every byte is compared afterwards. Each round first measures what plain sockets bring through the same NICs at once:
that is the limit. A ratio is the median over rounds of the ratio within the round. Choose a rate at which neither the
cores nor the disk are the limit: the table shows the CPU time.
"""

import argparse
import asyncio
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from kvbench import bed_faults, noise, options, result, testbed, testbed_options
from kvbench.bed_cluster import ALL, DUAL, SINGLE, Paths
from kvbench.bed_engine import GROUPS, LAYOUT
from kvbench.dualpath_rounds import Measured, Plan, Round, measure
from kvbench.paired import interval
from kvbench.result import Result
from kvbench.topology import COMPUTE, DEVICES, STORAGE, engine_hosts
from kvbench.yardsticks import ALL_SOCKETS, READERS_SOCKETS
from kvstore.cli.options import size
from kvstore.errors import InvalidInput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--testbed", action="store_true", required=True, help="on hosts that are made for it, here")
    testbed_options.add_arguments(parser)
    group = parser.add_argument_group("load")
    options.add_bytes(parser, "1GiB")
    group.add_argument(
        "--limit-s", type=float, default=3.0, metavar="N", help="how long plain sockets are measured (default: 3)"
    )
    group.add_argument(
        "--concurrent", type=int, default=1, metavar="N", help="loads at once, over all prefill nodes (default: 1)"
    )
    group.add_argument(
        "--handoffs",
        type=size,
        default=0,
        metavar="SIZE",
        help="of each handoff from the last prefill node to the first helper, all the time (default: none)",
    )
    group.add_argument("--tier", choices=("dram", "nvme"), default="dram", help="of the storage node (default: dram)")
    options.add_path(group)
    group.add_argument(
        "--background-load",
        type=bed_faults.percent,
        default=0.0,
        metavar="SHARE",
        help="of the first helper's storage NIC, by plain sockets, all the time",
    )
    group.add_argument(
        "--overhead",
        action="store_true",
        help="what DualPath costs where it cannot help: no helper, each round a pair of loads, with it and with"
        " --no-relay; the ratios of their seconds and CPU seconds with their intervals (wants --rounds of 10)",
    )
    bed_faults.add_arguments(parser)
    options.add_rounds(parser, 3)


def run(args: argparse.Namespace) -> Result:
    plan = _plan(args)
    testbed.require()
    rounds = asyncio.run(measure(plan))
    return result.of_this_machine(
        "dualpath",
        settings={
            "bytes": plan.bytes,
            "rounds": plan.rounds,
            "concurrent": len(plan.seeds),
            "block_bytes": LAYOUT.block_bytes,
            "layer_groups": GROUPS,
            "tier": args.tier,
            "snic_mbit": {host.name: host.nic(STORAGE).mbit for host in plan.hosts},
            "cnic_mbit": args.cnic_mbit,
            "storage_mbit": args.storage_mbit,
            "background_share": plan.background_share,
            "handoff_bytes": args.handoffs,
            "fault": asdict(plan.fault) if plan.fault else None,
        },
        keys=("path", "nic"),
        measurements=list(rows(plan, rounds)),
        ratios=ratios(plan, rounds) | (overhead(rounds) if args.overhead else {}),
    )


def _plan(args: argparse.Namespace) -> Plan:
    options.check_positive(rounds=args.rounds, concurrent=args.concurrent, limit_s=args.limit_s)
    if args.bytes < args.concurrent * LAYOUT.block_bytes:
        raise InvalidInput(f"--bytes of {LAYOUT.block_bytes} per load or more")
    if args.fault and args.background_load:
        raise InvalidInput("a fault comes when so much of the load has: background load would be taken for it")
    if (args.overhead or not args.helpers) and (args.fault or args.background_load or args.handoffs):
        raise InvalidInput("a fault, a background load or handoffs need a helper: --helpers of 1 or more")
    if args.handoffs % LAYOUT.block_bytes:
        raise InvalidInput(f"--handoffs must be whole blocks of {LAYOUT.block_bytes} bytes")
    if args.overhead:
        args.helpers = 0
    topology = testbed_options.topology(args)
    hosts = tuple(topology.host(name) for name in engine_hosts(args.prefills, args.helpers))
    return Plan(
        topology=topology,
        readers=hosts[: args.prefills],
        helpers=hosts[args.prefills :],
        blocks=args.bytes // LAYOUT.block_bytes // args.concurrent,
        seeds=tuple(str(number + 1) for number in range(args.concurrent)),
        rounds=args.rounds,
        limit_s=args.limit_s,
        background_share=args.background_load,
        fault=args.fault,
        nvme_path=args.path if args.tier == "nvme" else None,
        handoff_blocks=args.handoffs // LAYOUT.block_bytes,
    )


def rows(plan: Plan, rounds: list[Round]) -> Iterator[dict[str, Any]]:
    """One row per way and per NIC of each way; medians over the rounds."""
    yield {
        "path": READERS_SOCKETS,
        "gb_per_s": noise.summary([sum(each.own.values()) / 1e9 for each in rounds]),
    }
    yield {"path": ALL_SOCKETS, "gb_per_s": noise.summary([sum(each.every.values()) / 1e9 for each in rounds])}
    for paths in ALL:
        loads = [each.loads[paths.name] for each in rounds]
        struck = [load.fault_s for load in loads if load.fault_s is not None]
        routes = sorted({route for load in loads for route in load.routes})
        yield {
            "path": paths.name,
            "gb_per_s": noise.summary([load.bytes_per_s / 1e9 for load in loads]),
            "seconds": noise.summary([load.seconds for load in loads]),
            "first_group_s": noise.summary([load.first_group_s for load in loads]),
            "cpu_s_per_gb": noise.summary([load.cpu_s / load.bytes * 1e9 for load in loads]),
            "missing_blocks": max(sum(load.missing.values()) for load in loads),
            **({"fault_s": _median(struck)} if struck else {}),
            **_handoff_columns(loads),
            **{f"{route}_bytes": int(_median(load.routes.get(route, 0) for load in loads)) for route in routes},
        }
    for paths in ALL:
        for host, network in ((host.name, network) for host in plan.hosts for network in (STORAGE, COMPUTE)):
            passed = [each.loads[paths.name].nics[host, network] for each in rounds]
            yield {
                "path": paths.name,
                "nic": f"{host} {DEVICES[network]}",
                "received_bytes": int(_median(nic.received_bytes for nic in passed)),
                "sent_bytes": int(_median(nic.sent_bytes for nic in passed)),
            }


def _handoff_columns(loads: list[Measured]) -> dict[str, Any]:
    """Over all rounds together: a percentile wants many."""
    alone_s = [seconds for load in loads for seconds in load.handoffs_alone_s]
    beside_s = [seconds for load in loads for seconds in load.handoffs_beside_s]
    if not beside_s:
        return {}
    return {
        "handoffs": len(beside_s),
        "handoff_alone_p50_ms": _percentile_ms(alone_s, 50),
        "handoff_alone_p99_ms": _percentile_ms(alone_s, 99),
        "handoff_p50_ms": _percentile_ms(beside_s, 50),
        "handoff_p99_ms": _percentile_ms(beside_s, 99),
    }


def _percentile_ms(seconds: list[float], share: int) -> float:
    return float(np.percentile(seconds, share)) * 1e3


def ratios(plan: Plan, rounds: list[Round]) -> dict[str, float]:
    """Of each way, those of the single path under names of their own; and of the two.

    of_limit: its speed, of that of plain sockets over the NICs that it may use. of_optimum: the best time that the NICs
    allow with the fault, of its own. dual_vs_single: their speeds.
    """
    found: dict[str, float] = {}
    for paths in ALL:
        each_of = [_ratios(plan, each, paths) for each in rounds]
        stem = "" if paths.helped else "single_"
        found |= {stem + name: _median(each[name] for each in each_of) for name in each_of[0]}
        columns = _handoff_columns([each.loads[paths.name] for each in rounds])
        if columns:
            found[f"{stem}handoff_p99_vs_alone"] = columns["handoff_p99_ms"] / columns["handoff_alone_p99_ms"]
        if paths.helped:
            pairs = [(each.loads[paths.name], each.loads[SINGLE.name]) for each in rounds]
            found["dual_vs_single"] = _median(dual.bytes_per_s / single.bytes_per_s for dual, single in pairs)
    return found


def overhead(rounds: list[Round]) -> dict[str, float]:
    """Seconds, and CPU seconds, of the loads with DualPath of those without, pair by pair: their medians, with the
    bounds between which those lie with a probability of `overhead_level`."""
    pairs = [(each.loads[DUAL.name], each.loads[SINGLE.name]) for each in rounds]
    seconds = interval([dual.seconds / single.seconds for dual, single in pairs])
    cpu = interval([dual.cpu_s / single.cpu_s for dual, single in pairs])
    found: dict[str, float] = {}
    for name, of in (("overhead_seconds", seconds), ("overhead_cpu", cpu)):
        found |= {name: of.median, f"{name}_low": of.low, f"{name}_high": of.high}
    return found | {"overhead_level": seconds.level}


def _ratios(plan: Plan, each: Round, paths: Paths) -> dict[str, float]:
    load, limit = each.loads[paths.name], each.every if paths.helped else each.own
    received = [load.nics[host.name, STORAGE].received_bytes for host in plan.hosts]
    found = {
        "of_limit": load.bytes_per_s / sum(limit.values()),
        "first_group_share": load.first_group_s / load.seconds,
        "snic_max_vs_mean": max(received) / statistics.mean(received),
    }
    if plan.fault is not None and paths.helped:
        best_s = bed_faults.optimum_s(plan.bytes, limit, plan.helpers[0].name, plan.fault)
        found["of_optimum"] = best_s / load.seconds
    return found


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)
