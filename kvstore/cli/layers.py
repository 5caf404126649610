"""Where settings come from, in this order: defaults, the TOML file, the environment, options of the command line.

`KVSTORE_NODE__DRAM_BYTES=512GiB` sets dram_bytes of [node], `KVSTORE_NODE__COMPUTE__DEVICE=eth1` device of
[node.compute]. Names without a double underscore are not ours: Kubernetes makes KVSTORE_PORT for a
service of that name.
"""

import argparse
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from kvstore.cli.options import dataclass_of, is_size, parser_of
from kvstore.config import Config, overlay, read_tables
from kvstore.errors import ConfigError

_PREFIX = "KVSTORE_"
_SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class Layer:
    """What one place says. `source`: the file, the variable, or "option"."""

    source: str
    tables: Mapping[str, Any]

    def says(self, path: Sequence[str]) -> bool:
        found: Any = self.tables
        for name in path:
            if not isinstance(found, Mapping) or name not in found:
                return False
            found = found[name]
        return True


def load_config(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Config:
    """All that holds for a command. Raises ConfigError."""
    return combined(layers(args, environ))


def layers(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> list[Layer]:
    """Each place that says something; a later one outweighs an earlier one. Raises ConfigError."""
    file = [Layer(args.config, read_tables(args.config))] if args.config else []
    variables = [_variable(name, text) for name, text in sorted(environ.items()) if _is_setting(name)]
    return [*file, *variables, Layer("option", _nested(vars(args)))]


def combined(laid: Sequence[Layer]) -> Config:
    """Raises ConfigError, which names the variable where the environment is at fault."""
    return reduce(_laid_over, laid, Config())


def source_of(path: Sequence[str], laid: Sequence[Layer]) -> str:
    """The last place that sets a value."""
    return next((layer.source for layer in reversed(laid) if layer.says(path)), "default")


def _laid_over(config: Config, layer: Layer) -> Config:
    try:
        return overlay(config, layer.tables)
    except ConfigError as error:
        if layer.source.startswith(_PREFIX):
            raise ConfigError(f"{layer.source}: {error}") from error
        raise


def _is_setting(name: str) -> bool:
    return name.startswith(_PREFIX) and "__" in name.removeprefix(_PREFIX)


def _variable(name: str, text: str) -> Layer:
    path = name.removeprefix(_PREFIX).lower().split("__")
    try:
        value = _parser(path)(text)
    except (ValueError, KeyError, argparse.ArgumentTypeError) as error:
        raise ConfigError(f"{name}: {text!r} is no {_kind(path)}") from error
    return Layer(name, _nested({".".join(path): value}))


def _parser(path: Sequence[str]) -> Callable[[str], Any]:
    annotation = _annotation(path)
    if annotation is bool:
        return lambda text: _SWITCH[text.lower()]
    return parser_of(path[-1], annotation)


def _kind(path: Sequence[str]) -> str:
    if _annotation(path) is bool:
        return "switch: true or false"
    return "size: 4096, 64KiB, 512MiB, 1.5GiB" if is_size(path[-1]) else "whole number"


def _annotation(path: Sequence[str]) -> Any:
    """Of a setting; of what is none, str: laying it over the configuration says what is wrong."""
    table: type | None = Config
    for name in path[:-1]:
        table = dataclass_of(typing.get_type_hints(table).get(name)) if table is not None else None
    return str if table is None else typing.get_type_hints(table).get(path[-1], str)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"node.compute.device": x} → {"node": {"compute": {"device": x}}}; a name without a dot is no setting."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *tables, name = path.split(".")
        if tables:
            branch = tree
            for table in tables:
                branch = branch.setdefault(table, {})
            branch[name] = value
    return tree
