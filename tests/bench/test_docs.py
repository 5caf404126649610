"""The commands of docs/benchmarks.md: each of them can be given as it stands there."""

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvbench.cli import COMMANDS, _add_shared

PAGE = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()


def commands() -> Iterator[str]:
    """Of the blocks of commands, of headings and sentences, and the rows of `kvbench dualpath`'s tables."""
    for block in re.findall(r"^```\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        for part in re.split(r"[\n;]", block):
            if part.strip().startswith("kvbench "):
                yield part.strip()
    yield from re.findall(r"`(kvbench \w[^`]*)`", PAGE)
    for options in re.findall(r"^\|(?: \*)? `(?:… )?(--[^`]*)`", PAGE, re.MULTILINE):
        yield f"kvbench dualpath --testbed {options}"


@pytest.mark.parametrize("command", [*dict.fromkeys(commands())])
def test_each_command_is_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that was renamed, or a value that is none, would leave a figure that nobody can repeat. Whoever repeats
    it has the directory that it names."""
    _, name, *options = shlex.split(command, comments=True)
    monkeypatch.chdir(tmp_path)
    if "--path" in options:
        Path(options[options.index("--path") + 1]).mkdir()
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False, add_help=False)
    importlib.import_module(COMMANDS[name].module).add_arguments(parser)
    _add_shared(name, parser)
    if options and options != ["--help"]:
        parser.parse_args(options)


def test_the_page_has_commands_of_every_bench() -> None:
    """A bench that is not named there has no figures that anybody could look up."""
    named = {shlex.split(command, comments=True)[1] for command in commands()}
    assert named == COMMANDS.keys()
