"""Block keys of a long prompt, beside the bare hash over the same bytes in one piece."""

import argparse
import hashlib
import time
from collections.abc import Callable

import numpy as np

from kvbench import machine
from kvbench.result import Result
from kvstore.blocks.keys import chain
from kvstore.blocks.layout import BLOCK_TOKENS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens of the prompt (default: %(default)s)")
    parser.add_argument("--block-tokens", type=int, default=BLOCK_TOKENS, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=100, help="measurements (default: %(default)s)")


def run(args: argparse.Namespace) -> Result:
    prompt = np.random.default_rng(1).integers(0, 2**32, args.tokens, np.uint32)
    chain_ms = _rounds_ms(lambda: chain(bytes(16), prompt, args.block_tokens), args.rounds)
    bare_ms = _rounds_ms(lambda: hashlib.blake2b(prompt.data, digest_size=16).digest(), args.rounds)
    p50_ms, p99_ms = (float(np.percentile(chain_ms, share)) for share in (50, 99))
    bare_p50_ms = float(np.percentile(bare_ms, 50))
    blocks = args.tokens // args.block_tokens
    return Result(
        bench="keys",
        config={"tokens": args.tokens, "block_tokens": args.block_tokens, "rounds": args.rounds},
        machine=machine.describe(),
        results=[
            {"what": "chain", "blocks": blocks, "p50_ms": p50_ms, "p99_ms": p99_ms, "block_us": p50_ms * 1e3 / blocks},
            {"what": "blake2b, one piece", "blocks": 1, "p50_ms": bare_p50_ms},
        ],
        ratios={"vs_blake2b": bare_p50_ms / p50_ms},
        extras={"p50_ms": p50_ms, "p99_ms": p99_ms},
    )


def _rounds_ms(work: Callable[[], object], rounds: int) -> list[float]:
    times_ms = []
    for _ in range(rounds):
        began_ns = time.perf_counter_ns()
        work()
        times_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
    return times_ms
