"""Completion of a program's words in shells: scripts made from the parsers of its commands, so that they are true."""

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shtab

from kvstore.cli.commands import SHELLS, AddShared, Command

_FILES = ("FILE", "NAME|FILE", "DIR|FILE", "TOKENS|KEY", "OLD", "NEW")
_DIRECTORIES = ("DIR", "DIRECTORY", "DEVICE")


def completion(
    program: str,
    commands: Mapping[str, Command],
    shell: str,
    add_shared: AddShared,
) -> str:
    """The script for a shell, bash or zsh. Imports every command."""
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("--version", action="version", version="")
    parser.add_argument("--completion", choices=SHELLS, help="writes this script")
    subparsers = parser.add_subparsers(dest="command")
    for name, command in commands.items():
        module: Any = importlib.import_module(command.module)
        each = subparsers.add_parser(name, help=command.help, description=module.__doc__)
        module.add_arguments(each)
        add_shared(name, each)
    _mark_files(parser)
    return shtab.complete(parser, shell=shell)


def _mark_files(parser: argparse.ArgumentParser) -> None:
    """Where a file or a directory is expected, those are offered."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _mark_files(each)
        elif action.metavar in _DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]  # shtab's way to be told
        elif action.metavar in _FILES or action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
