"""Goodput of a trace's requests, whose history lies in storage, over one storage NIC and over all.

A stretch of the trace is replayed against a running cluster: real processes on the hosts of a testbed (network
namespaces, so root is needed), real bytes, the real client. Each request: match → load → prefill, in an engine's time →
handoff → decode, in its time, whose blocks are stored. What the stretch shares with the requests before it lies in
storage when it begins; what it shares with itself lies where it was stored. Only the GPUs are clocks.

Goodput is the highest rate of requests of which 90 % meet both objectives (DistServe's definition), found by bisection:
the trace's times are stretched to each rate. --speed serves one rate instead, to its end: the trace's, so many times as
fast.
"""

import argparse
import math
from pathlib import Path

from kvbench import serving_bench, serving_options, testbed_options, trace
from kvbench.result import Result
from kvbench.serving_options import Load
from kvbench.serving_run import Plan
from kvbench.trace import TRACE_BLOCK_TOKENS
from kvbench.workload import Traced
from kvstore.errors import InvalidInput

_WARM_UP_REQUESTS = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("requests")
    group.add_argument(
        "--trace",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON lines: timestamp, input_length, output_length, hash_ids",
    )
    group.add_argument("--skip", type=int, default=2000, metavar="N", help="requests before (default: %(default)s)")
    group.add_argument("--requests", type=int, default=50, metavar="N", help="replayed (default: %(default)s)")
    group.add_argument(
        "--speed", type=float, default=0.0, metavar="N", help="serve the trace's rate times this; no search"
    )
    serving_options.add_arguments(parser)
    parser.set_defaults(snic_mbit=320)


def run(args: argparse.Namespace) -> Result:
    serving_options.check(args)
    requests = trace.read_with_lengths(args.trace)
    stretched = 0 <= args.speed < math.inf
    if args.skip < 0 or args.requests < 2 or args.skip + args.requests > len(requests) or not stretched:
        raise InvalidInput(
            f"--skip from 0, --requests from 2, together {len(requests)} (the trace's) at most; --speed from 0"
        )
    traced = Traced(requests[: args.skip], requests[args.skip : args.skip + args.requests])
    scale = serving_options.scaled(args)
    topology = testbed_options.topology(args)
    prefills, decodes = serving_options.hosts(topology, args)
    load = Load.of(_lengths(traced))
    guess = serving_options.estimate(args, load, scale.engine, prefills, decodes)
    warm = Traced(traced.before, traced.requests[:_WARM_UP_REQUESTS])
    plan = Plan(
        topology=topology,
        prefills=prefills,
        decodes=decodes,
        engine=scale.engine,
        block_tokens=args.block_tokens,
        loads=args.loads,
        slo=serving_options.slo(args),
        skip_s=0.0,
        end_s=float("inf"),
        tolerance=args.tolerance,
        rate_max=args.rate_max,
        rates=(traced.rate * args.speed,) if args.speed else (),
        nvme_path=args.path if args.tier == "nvme" else None,
        draw=traced.workload,
        warm_up=warm.workload,
        guess=guess.of,
    )
    return serving_bench.run(
        "goodput",
        args,
        plan,
        scale,
        guess,
        trace=args.trace.name,
        skip=args.skip,
        requests=args.requests,
        speed=args.speed,
        trace_rate_per_s=traced.rate,
    )


def _lengths(traced: Traced) -> list[tuple[int, int, int]]:
    """(prompt, history, generated) of each request, in tokens. History: whatever an earlier request had."""
    known = {name for request in traced.before for name in request.blocks}
    found = []
    for request in traced.requests:
        old = next((i for i, name in enumerate(request.blocks) if name not in known), len(request.blocks))
        known |= set(request.blocks)
        found.append((request.input_tokens, old * TRACE_BLOCK_TOKENS, request.output_tokens))
    return found
