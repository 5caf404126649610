"""Runs a control plane: it maps prefixes to the nodes that hold them, and never touches a byte of KV."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from kvstore.cli.layers import load_config
from kvstore.cli.options import add_config_file, add_options
from kvstore.cli.process import add_process_arguments, run_service
from kvstore.config import Config
from kvstore.control import app


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_file(parser)
    add_process_arguments(parser)
    add_options(parser, "control")
    add_options(parser, "door", prefix="door-")


def run(args: argparse.Namespace) -> int:
    return run_service("control", partial(control_plane, load_config(args)), args)


@asynccontextmanager
async def control_plane(config: Config) -> AsyncIterator[str]:
    async with running(config) as server:
        yield " ".join([f"address={server.address}", *pages_said(server)])


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[app.ControlServer]:
    server = await app.serve(config.control, config.door)
    try:
        yield server
    finally:
        await server.stop()


def pages_said(server: app.ControlServer, prefix: str = "") -> list[str]:
    """What the ready line says of the page and the metrics."""
    said = [] if server.page is None else [f"page={server.page.url}"]
    return said + ([f"{prefix}metrics={server.metrics.url}"] if server.metrics.url else [])
