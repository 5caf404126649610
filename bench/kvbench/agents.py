"""Agents: goodput of multi-turn sessions whose history lies in storage, over one storage NIC and over all.

Sessions are drawn from a shape of the DualPath paper (arXiv 2602.21548), arrive in a Poisson process and are followed
for some turns from anywhere in their course. Each turn is served by real processes on the hosts of a testbed (network
namespaces, so root is needed): match → load → prefill, in an engine's time → handoff → decode, in its time, whose
blocks are stored. KV is real bytes; only the GPUs are clocks. Bytes per token, the NICs' rate and the prefill table are
scaled together, so that the cache-compute ratio is the model's on the paper's node.

Goodput is the highest rate of turns of which 90 % meet both objectives (DistServe's definition), found by bisection.
Ways: no cache (everything is computed), single path (history over the prefill node's storage NIC alone), dual path
(over the decode nodes' too), oracle (history costs nothing).
"""

import argparse
from functools import partial

from kvbench import options, serving_bench, serving_options, testbed_options
from kvbench.result import Result
from kvbench.serving_options import Load
from kvbench.serving_run import Plan
from kvbench.workload import SHAPES, Agents, Workload
from kvstore.errors import InvalidInput

_SKIP_PART = 0.2
"""Of a trial's time: requests of its beginning find no queue, and are not counted."""
_WARM_UP_S = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sessions")
    group.add_argument("--shape", choices=SHAPES, default="64k", help="longest context (default: %(default)s)")
    group.add_argument("--turns", type=int, default=2, metavar="N", help="of one session (default: %(default)s)")
    group.add_argument(
        "--turn-gap", type=float, default=1.0, metavar="S", help="from an answer to the next prompt (default: 1)"
    )
    group.add_argument("--pool", type=int, default=160, metavar="N", help="different histories (default: %(default)s)")
    group.add_argument("--quick", action="store_true", help="single and dual path only, shorter, and to a coarser rate")
    serving_options.add_arguments(parser)
    options.add_duration(parser, 20)
    parser.set_defaults(snic_mbit=320)


def run(args: argparse.Namespace) -> Result:
    if args.quick:
        args.ways = ["single path", "dual path"]
        args.duration, args.tolerance = min(args.duration, 12.0), max(args.tolerance, 0.25)
    serving_options.check(args)
    options.check_positive(duration=args.duration)
    agents = Agents(SHAPES[args.shape], args.pool, args.turns, args.turn_gap, args.seed)
    scale = serving_options.scaled(args)
    shape = agents.shape
    topology = testbed_options.topology(args)
    prefills, decodes = serving_options.hosts(topology, args)
    load = Load(shape.context + shape.appended, shape.context, shape.generated)
    guess = serving_options.estimate(args, load, scale.engine, prefills, decodes)
    decode_s = scale.engine.decode_s(shape.context, shape.context + shape.generated)
    if decode_s / shape.generated > args.tpot:
        raise InvalidInput(f"--tpot {args.tpot:g}: the engine takes {decode_s / shape.generated:.3f} s per token alone")
    turn_s = args.ttft / 2 + decode_s

    def draw(seconds: float, rate: float, salt: int) -> Workload:
        return agents.workload(rate, seconds, turn_s, salt)

    plan = Plan(
        topology=topology,
        prefills=prefills,
        decodes=decodes,
        engine=scale.engine,
        block_tokens=args.block_tokens,
        loads=args.loads,
        slo=serving_options.slo(args),
        skip_s=args.duration * _SKIP_PART,
        end_s=args.duration,
        tolerance=args.tolerance,
        rate_max=args.rate_max,
        rates=(),
        nvme_path=args.path if args.tier == "nvme" else None,
        draw=partial(draw, args.duration),
        warm_up=partial(draw, _WARM_UP_S),
        guess=guess.of,
    )
    return serving_bench.run(
        "agents",
        args,
        plan,
        scale,
        guess,
        shape=args.shape,
        turns=args.turns,
        turn_gap=args.turn_gap,
        pool=args.pool,
        duration=args.duration,
    )
