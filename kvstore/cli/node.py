"""Runs a node: it owns slots in memory and moves blocks between engines on this host and other nodes."""

import argparse
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from kvstore.cli.layers import load_config
from kvstore.cli.options import add_config_file, add_options
from kvstore.cli.process import add_process_arguments, run_service
from kvstore.config import NodeConfig
from kvstore.node import app


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_file(parser)
    add_process_arguments(parser)
    add_options(parser, "node")


def run(args: argparse.Namespace) -> int:
    config = load_config(args)
    return run_service("node", partial(node, config.node, config.namespaces), args)


@asynccontextmanager
async def node(config: NodeConfig, namespaces: Mapping[str, Mapping[str, Any]]) -> AsyncIterator[str]:
    server = await app.serve(config, namespaces=namespaces)
    try:
        yield f"address={server.address} socket={server.socket}"
    finally:
        await server.stop()
