"""Types of arguments that several benches have."""

import argparse
from collections.abc import Callable, Collection
from typing import TypeVar

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
