"""The options of benches that serve requests, and what they make of them: a scaled engine on a scaled testbed.

The paper's node (DualPath, arXiv 2602.21548) has one storage NIC of 400 Gbit/s. Here a token has `--scale` times fewer
bytes of KV than the model's, and the NIC carries `--snic-mbit`; prefill is slowed by as much as the NIC is too slow for
that. So the time of a load and that of a prefill keep the ratio that they have on the paper's node: the cache-compute
ratio (GB loaded per PFLOP computed) is the model's.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvbench import engine_model, options, testbed_options
from kvbench.engine_model import ENGINES, EngineModel
from kvbench.serving_engine import LAYERS
from kvbench.serving_run import WAYS
from kvbench.slo import Slo
from kvbench.topology import STORAGE, Host, Topology, engine_hosts
from kvstore.errors import InvalidInput

PAPER_SNIC_MBIT = 400_000
_WORD = 8 * LAYERS


@dataclass(frozen=True, slots=True)
class Scaled:
    """model: as it is. engine: as it serves here. slowed: prefill of the one to that of the other."""

    model: EngineModel
    engine: EngineModel
    slowed: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("serving")
    group.add_argument("--testbed", action="store_true", required=True, help="on hosts that are made for it, here")
    group.add_argument(
        "--engine",
        default="qwen2.5-32b",
        metavar="NAME|FILE",
        help=f"{', '.join(ENGINES)}, or a JSON file with name, token_bytes, prefill and decode: pairs of tokens of"
        " context and tokens per second (default: %(default)s)",
    )
    group.add_argument(
        "--scale",
        type=int,
        default=512,
        metavar="N",
        help="the model's bytes per token, divided (default: %(default)s)",
    )
    group.add_argument(
        "--block-tokens", type=int, default=256, metavar="N", help="tokens of one block (default: %(default)s)"
    )
    options.add_names(group, "--ways", WAYS)
    group.add_argument("--ttft", type=float, default=4.0, metavar="S", help="objective: first token (default: 4)")
    group.add_argument("--tpot", type=float, default=0.05, metavar="S", help="objective: per token (default: 0.05)")
    group.add_argument(
        "--tolerance", type=float, default=0.12, metavar="PART", help="of the goodput that is searched (default: 0.12)"
    )
    group.add_argument(
        "--rate-max", type=float, default=20.0, metavar="N", help="requests/s over which none is tried (default: 20)"
    )
    group.add_argument("--loads", type=int, default=4, metavar="N", help="at a time, per prefill engine (default: 4)")
    group.add_argument("--tier", choices=("dram", "nvme"), default="nvme", help="of the storage node (default: nvme)")
    options.add_path(group)
    options.add_seed(parser)
    testbed_options.add_arguments(parser)


def check(args: argparse.Namespace) -> None:
    """Raises InvalidInput for what no run can be made of."""
    options.check_positive(
        scale=args.scale,
        block_tokens=args.block_tokens,
        ttft=args.ttft,
        tpot=args.tpot,
        tolerance=args.tolerance,
        rate_max=args.rate_max,
        loads=args.loads,
        snic_mbit=args.snic_mbit,
    )
    if args.block_tokens % 16:
        raise InvalidInput("--block-tokens must be a multiple of 16, the tokens of a page")
    if args.helpers < 1:
        raise InvalidInput("--helpers must be 1 or more: a decode node is where a request goes on")


def scaled(args: argparse.Namespace) -> Scaled:
    model = engine_model.chosen(args.engine)
    token_bytes = max(_WORD, round(model.token_bytes / args.scale / _WORD) * _WORD)
    scale = model.token_bytes / token_bytes
    slowed = PAPER_SNIC_MBIT / scale / args.snic_mbit
    return Scaled(model, replace(model.slowed(slowed), token_bytes=token_bytes), slowed)


def slo(args: argparse.Namespace) -> Slo:
    return Slo(args.ttft, args.tpot)


def hosts(topology: Topology, args: argparse.Namespace) -> tuple[tuple[Host, ...], tuple[Host, ...]]:
    """Prefill nodes, decode nodes."""
    found = tuple(topology.host(name) for name in engine_hosts(args.prefills, args.helpers))
    return found[: args.prefills], found[args.prefills :]


@dataclass(frozen=True, slots=True)
class Load:
    """The means of a workload, per request: of the prompt, of it what is history, and what is generated; in tokens."""

    prompt: float
    history: float
    generated: float

    @classmethod
    def of(cls, requests: Sequence[tuple[int, int, int]]) -> "Load":
        prompt, history, generated = (sum(column) / len(requests) for column in zip(*requests, strict=True))
        return cls(prompt, history, generated)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a fluid would serve, by the resource that ends first: where a search begins, and what it is read beside."""

    load: Load
    engine: EngineModel
    block_tokens: int
    prefill_snics: Sequence[float]
    all_snics: Sequence[float]

    def of(self, way: str) -> float:
        """Requests per second. snics: bytes per second of each."""
        prefills = len(self.prefill_snics)
        if way == "no cache":
            return prefills / self.engine.prefill_s(0, round(self.load.prompt))
        # What is left of a history behind its last full block is computed again.
        first = max(0, round(self.load.history - self.block_tokens / 2))
        gpus = prefills / max(self.engine.prefill_s(first, round(self.load.prompt)), 1e-6)
        if way == "oracle":
            return gpus
        snics = self.all_snics if way == "dual path" else self.prefill_snics
        return min(gpus, sum(snics) / max(1.0, first * self.engine.token_bytes))

    def gb_per_pflop(self, model: EngineModel) -> float:
        """Loaded, of the model as it is, per computed; 0 where its arithmetic is not known."""
        flops = model.flops(round(self.load.history), round(self.load.prompt))
        return self.load.history * model.token_bytes / 1e9 / (flops / 1e15) if flops else 0.0


def estimate(
    args: argparse.Namespace, load: Load, engine: EngineModel, prefills: Sequence[Host], decodes: Sequence[Host]
) -> Estimate:
    def rates(hosts: Sequence[Host]) -> list[float]:
        return [host.nic(STORAGE).mbit * 1e6 / 8 for host in hosts]

    return Estimate(load, engine, args.block_tokens, rates(prefills), rates([*prefills, *decodes]))


def settings(args: argparse.Namespace, scale: Scaled, guess: Estimate) -> dict[str, Any]:
    """All that figures depend on, the scaling among it."""
    names = ("block_tokens", "tolerance", "rate_max", "loads", "tier", "seed", "snic_mbit")
    return {
        "engine": scale.model.name,
        "model_token_bytes": scale.model.token_bytes,
        "token_bytes": scale.engine.token_bytes,
        "scale": scale.model.token_bytes / scale.engine.token_bytes,
        "paper_snic_mbit": PAPER_SNIC_MBIT,
        "prefill_slowed": scale.slowed,
        "prefill": scale.engine.prefill,
        "decode": scale.engine.decode,
        "ttft_s": args.ttft,
        "tpot_s": args.tpot,
        "gb_per_pflop": round(guess.gb_per_pflop(scale.model), 1),
        "prefill_nodes": args.prefills,
        "decode_nodes": args.helpers,
        "estimates_per_s": {way: _finite(guess.of(way)) for way in args.ways},
        **{name: getattr(args, name) for name in names},
    }


def _finite(rate: float) -> float:
    return rate if math.isfinite(rate) else 0.0
