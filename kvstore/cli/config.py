"""Shows what the configuration comes to, or checks it, as a server with the same file and environment would see it.

`show` prints a TOML file that says the same, each line with the place it comes from. `check` prints nothing but errors.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvstore.cli.layers import Layer, combined, layers, source_of
from kvstore.cli.options import add_config_file, add_options
from kvstore.cli.toml import toml_string
from kvstore.config import Config
from kvstore.fabric import check_fabric
from kvstore.policy.policies import admission, check_roles, eviction_of_tiers
from kvstore.policy.rulebook import RuleBook
from kvstore.policy.rules import NamespaceRules
from kvstore.rpc.bind import expect_accepted
from kvstore.rpc.guard import expect_whole

_TABLES = ("control", "node", "client", "door")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", choices=["show", "check"], help="print it, or only say what is wrong with it")
    add_config_file(parser)
    for name in _TABLES:
        add_options(parser, name, prefix=f"{name}-")


def run(args: argparse.Namespace) -> int:
    laid = layers(args)
    config = combined(laid)
    check(config)
    if args.verb == "show":
        sys.stdout.writelines(f"{line}\n" for line in shown(config, laid))
    return 0


def check(config: Config) -> None:
    """Raises ConfigError for values that a server would refuse before it looks at this machine."""
    expect_whole(config.door)
    expect_accepted("control.listen", config.control.listen, insecure=config.control.insecure, door=config.door)
    if config.control.page:
        expect_accepted(
            "control.page", config.control.page, insecure=config.control.insecure, door=config.door, sockets=False
        )
    expect_accepted("node.listen", config.node.listen, insecure=config.node.insecure, door=config.door)
    for name, process in (("control", config.control), ("node", config.node)):
        if process.metrics_listen:
            setting = f"{name}.metrics_listen"
            expect_accepted(setting, process.metrics_listen, insecure=process.insecure, door=None, sockets=False)
    check_roles(config.node)
    eviction_of_tiers(config.node)
    admission(config.node)
    check_fabric(config.node.compute, "node.compute")
    if config.node.storage is not None:
        check_fabric(config.node.storage, "node.storage")
    RuleBook(NamespaceRules.of_node(config.node), config.namespaces)


def shown(config: Config, laid: Sequence[Layer]) -> Iterator[str]:
    """Lines of a TOML file that says what `config` holds, each with its source."""
    for name in _TABLES:
        yield from _table((name,), getattr(config, name), laid)
    for pattern, rules in config.namespaces.items():
        yield f"[namespaces.{toml_string(pattern)}]"
        for name, value in rules.items():
            yield f"{name} = {_value(value)}  # {source_of(('namespaces', pattern, name), laid)}"
        yield ""


def _table(path: tuple[str, ...], table: Any, laid: Sequence[Layer]) -> Iterator[str]:
    nested = []
    yield f"[{'.'.join(path)}]"
    for field in dataclasses.fields(table):
        value, place = getattr(table, field.name), (*path, field.name)
        if dataclasses.is_dataclass(value):
            nested.append((place, value))
        elif value is not None:
            yield f"{field.name} = {_value(value)}  # {source_of(place, laid)}"
    yield ""
    for place, value in nested:
        yield from _table(place, value, laid)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return toml_string(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_string(name)} = {_value(each)}" for name, each in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool | float) else str(value)
