"""The options that benches have in common: each is written here once, and a bench takes those that apply to it."""

import argparse
import math
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

from kvbench import models
from kvbench.layouts import layout_of
from kvstore.blocks.layout import Layout
from kvstore.cli.options import shown_size, size, whole
from kvstore.errors import InvalidInput

T = TypeVar("T")


def list_of(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Comma-separated values."""

    def parse(text: str) -> list[T]:
        return [kind(part) for part in text.split(",")]

    return parse


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """One of these names, where `choices` of argparse does not do: within a list."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return parse


def result_file(text: str) -> Path:
    """A file that can be written: known before anything is measured. Raises ArgumentTypeError."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent}: no such directory")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path}: a directory")
    is_new = not path.exists()
    try:
        path.open("a").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from error
    return path


def directory(text: str) -> Path:
    """One in which files can be made: known before anything is measured. Raises ArgumentTypeError."""
    path = Path(text)
    try:
        tempfile.TemporaryDirectory(prefix="kvbench-", dir=path).cleanup()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from error
    return path


def add_sizes(parser: argparse.ArgumentParser, default: str) -> None:
    """`sizes`: of blocks or messages; and `model`, whose blocks they may be."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--sizes",
        type=list_of(size),
        default=default,
        metavar="SIZE,…",
        help="of one block (default: %(default)s)",
    )
    add_model(group, "blocks of this model instead; kvbench models lists them")


def add_names(parser: "argparse._ActionsContainer", option: str, names: Collection[str]) -> None:
    """Some of these, or all."""
    parser.add_argument(
        option, type=list_of(one_of(names)), default=",".join(names), metavar="NAME,…", help="(default: %(default)s)"
    )


def add_model(parser: "argparse._ActionsContainer", help: str, default: str | None = None) -> None:
    parser.add_argument("--model", type=models.named, default=default, metavar="NAME", help=help)


def add_bytes(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--bytes", type=size, default=default, metavar="SIZE", help="of one run (default: %(default)s)")


def add_path(parser: "argparse._ActionsContainer") -> None:
    parser.add_argument(
        "--path",
        type=directory,
        default=Path(),
        metavar="DIR",
        help="on the disk of the NVMe tier; what is made there is removed (default: here)",
    )


def add_rounds(parser: argparse.ArgumentParser, default: int, what: str = "repetitions") -> None:
    parser.add_argument("--rounds", type=int, default=default, metavar="N", help=f"{what} (default: %(default)s)")


def add_warm_up(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--warm-up", type=whole(0), default=default, metavar="N", help="repetitions before those (default: %(default)s)"
    )


def add_duration(parser: argparse.ArgumentParser, default: float) -> None:
    parser.add_argument(
        "--duration", type=float, default=default, metavar="S", help="seconds of one repetition (default: %(default)g)"
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=whole(0), default=1, metavar="N", help="of all that is drawn (default: %(default)s)"
    )


def layouts(sizes: Sequence[int], model: models.Model | None) -> dict[int, Layout]:
    """By the bytes of a block: the model's layout, or one of the sizes that were asked for."""
    found = [model.layout] if model is not None else [layout_of(count) for count in sizes]
    return {layout.block_bytes: layout for layout in found}


def check_positive(**given: float) -> None:
    """Raises InvalidInput for the first that is not above 0, or has no end. Names as the options have them, with
    underscores."""
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise InvalidInput(f"--{name.replace('_', '-')} must be positive, not {value:g}")


def check_sizes(sizes: Sequence[int], unit: int) -> None:
    """Raises InvalidInput for sizes that are no whole units."""
    for count in sizes:
        if count < unit or count % unit:
            raise InvalidInput(f"--sizes must be positive multiples of {shown_size(unit)}, not {shown_size(count)}")
