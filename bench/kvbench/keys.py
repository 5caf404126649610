"""Block keys of a long prompt, beside the bare hash over the same bytes in one piece."""

import argparse
import hashlib
import time
from collections.abc import Callable

import numpy as np

from kvbench import noise, options, result
from kvbench.result import Result
from kvbench.yardsticks import HASH
from kvstore.blocks.keys import chain
from kvstore.blocks.layout import BLOCK_TOKENS
from kvstore.errors import InvalidInput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens of the prompt (default: %(default)s)")
    parser.add_argument("--block-tokens", type=int, default=BLOCK_TOKENS, help="default: %(default)s")
    options.add_rounds(parser, 100)
    options.add_seed(parser)


def run(args: argparse.Namespace) -> Result:
    options.check_positive(tokens=args.tokens, block_tokens=args.block_tokens, rounds=args.rounds)
    if args.tokens < args.block_tokens:
        raise InvalidInput(f"--tokens must be one block of {args.block_tokens} at least, not {args.tokens}")
    prompt = np.random.default_rng(args.seed).integers(0, 2**32, args.tokens, np.uint32)
    chain_ms = _rounds_ms(lambda: chain(bytes(16), prompt, args.block_tokens), args.rounds)
    bare_ms = _rounds_ms(lambda: hashlib.blake2b(prompt.data, digest_size=16).digest(), args.rounds)
    chained, bare = (noise.summary(noise.parts(times_ms)) for times_ms in (chain_ms, bare_ms))
    blocks = args.tokens // args.block_tokens
    return result.of_this_machine(
        "keys",
        settings={"tokens": args.tokens, "block_tokens": args.block_tokens, "rounds": args.rounds, "seed": args.seed},
        keys=("what",),
        measurements=[
            {"what": "chain", "blocks": blocks, "ms": chained, "block_us": chained["p50"] * 1e3 / blocks},
            {"what": HASH, "blocks": 1, "ms": bare},
        ],
        ratios={"vs_blake2b": bare["p50"] / chained["p50"]},
        extras={"p50_ms": chained["p50"], "p99_ms": chained["p99"]},
    )


def _rounds_ms(work: Callable[[], object], rounds: int) -> list[float]:
    times_ms = []
    for _ in range(rounds):
        began_ns = time.perf_counter_ns()
        work()
        times_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
    return times_ms
