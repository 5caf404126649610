"""Runs a node: it owns slots in memory and moves blocks between engines on this host and other nodes."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from kvstore.cli.layers import load_config
from kvstore.cli.options import add_config_file, add_options
from kvstore.cli.process import add_process_arguments, run_service
from kvstore.config import Config
from kvstore.node import app


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_file(parser)
    add_process_arguments(parser)
    add_options(parser, "node")
    add_options(parser, "door", prefix="door-")


def run(args: argparse.Namespace) -> int:
    return run_service("node", partial(node, load_config(args)), args)


@asynccontextmanager
async def node(config: Config) -> AsyncIterator[str]:
    server = await app.serve(config.node, namespaces=config.namespaces, door=config.door)
    try:
        said = f"address={server.address} socket={server.socket}"
        yield f"{said} metrics={server.metrics.url}" if server.metrics.url else said
    finally:
        await server.stop()
