"""The console script `kvstore`."""

import sys
from collections.abc import Sequence

from kvstore.cli.commands import Command, run_program

COMMANDS = {
    "serve": Command("kvstore.cli.serve", "control plane and one node in one process, on loopback"),
    "control": Command("kvstore.cli.control", "a control plane"),
    "node": Command("kvstore.cli.node", "a node"),
    "config": Command("kvstore.cli.config", "what file, environment and options come to, and where each value is from"),
    "certs": Command("kvstore.cli.certs", "an authority for one cluster, and certificates for its processes"),
    "tokens": Command("kvstore.cli.tokens", "tokens of tenants and admins, for a cluster behind a shut door"),
    "demo": Command("kvstore.cli.demo", "agent sessions over real processes, every byte checked"),
    "admin": Command("kvstore.cli.admin", "what the cluster holds: stats, nodes, blocks"),
}


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(
        "kvstore",
        "Keeps the KV cache of LLM inference and moves it between engines.",
        COMMANDS,
        sys.argv[1:] if argv is None else argv,
    )
