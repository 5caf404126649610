"""Runs a control plane and one node in one process, on loopback: everything that one host needs, with no configuration.

Connect to it with `await AsyncClient.connect(node=SOCKET, …)`, where SOCKET is what the ready line says.
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial

from kvstore.cli.control import pages_said, running
from kvstore.cli.layers import load_config
from kvstore.cli.node import node
from kvstore.cli.options import add_config_file, add_options
from kvstore.cli.process import add_process_arguments, run_service
from kvstore.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_file(parser)
    add_process_arguments(parser)
    add_options(parser, "node", leave_out=frozenset({"control"}))
    add_options(parser, "control", prefix="control-")
    add_options(parser, "door", prefix="door-")


def run(args: argparse.Namespace) -> int:
    return run_service("serve", partial(_both, load_config(args)), args)


@asynccontextmanager
async def _both(config: Config) -> AsyncIterator[str]:
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(running(config))
        embedded = node(replace(config, node=replace(config.node, control=control.address)))
        said = await stack.enter_async_context(embedded)
        yield " ".join([said, f"control={control.address}", *pages_said(control, "control_")])
