"""A program of subcommands, each in a module that is imported only when it is called: `--help` stays fast.

A command's module has `add_arguments(parser)` and `run(args)`, which returns the exit code, or what the program's
`finish` makes one of.
"""

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvstore.errors import KVStoreError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
SHELLS = ("bash", "zsh")
AddShared = Callable[[str, argparse.ArgumentParser], None]
"""Adds arguments to the parser of the command of a name."""


@dataclass(frozen=True, slots=True)
class Command:
    module: str
    help: str


def run_program(
    program: str,
    description: str,
    commands: Mapping[str, Command],
    argv: Sequence[str],
    *,
    add_shared: AddShared = lambda name, parser: None,
    finish: Callable[[Any, argparse.Namespace], int] = lambda code, args: int(code),
) -> int:
    """Runs the subcommand that `argv` names and returns its exit code.

    add_shared: adds arguments that most commands have, to the one of that name. finish: takes what the command
    returned, and its arguments.
    A KVStoreError becomes one line on stderr and exit code 2. Raises SystemExit as argparse does (--help, bad usage).
    """
    if not argv or argv[0] not in commands:
        _overview(program, description, commands, add_shared).parse_args(argv)
        raise AssertionError("the overview's parser knows no command, so it always exits")
    command = commands[argv[0]]
    module: Any = importlib.import_module(command.module)
    parser = argparse.ArgumentParser(
        prog=f"{program} {argv[0]}", description=module.__doc__, allow_abbrev=False, formatter_class=_Formatter
    )
    module.add_arguments(parser)
    add_shared(argv[0], parser)
    args = parser.parse_args(argv[1:])
    try:
        return finish(module.run(args), args)
    except KVStoreError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`). Python would complain once more while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def _overview(
    program: str, description: str, commands: Mapping[str, Command], add_shared: AddShared
) -> argparse.ArgumentParser:
    width = max(len(name) for name in commands)
    lines = [f"  {name:{width}}  {command.help}" for name, command in commands.items()]
    text = "\n".join([description, "", "commands:", *lines, "", f"{program} COMMAND --help shows a command's options."])
    parser = argparse.ArgumentParser(
        prog=program, usage=f"{program} COMMAND [options]", description=text, formatter_class=_Formatter
    )
    version = f"{program} {importlib.metadata.version('kvstore')}"
    parser.add_argument("--version", action="version", version=version)

    class Completion(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> None:
            from kvstore.cli.completion import completion  # it needs a package, and every command

            print(completion(program, commands, values, add_shared))
            parser.exit()

    parser.add_argument(
        "--completion",
        action=Completion,
        choices=SHELLS,
        help="write the script for completion in a shell, and exit",
    )
    parser.add_argument("command", metavar="COMMAND", choices=[*commands], help=argparse.SUPPRESS)
    return parser
