"""How much of each kind there is: little with the other tests, more where the environment says so (`scripts/fuzz`)."""

import itertools
import os
import time
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

SECONDS = float(os.environ.get("KVSTORE_FUZZ_SECONDS", "4"))
"""Of the calls to each service, and of the files of a device."""
SEED = int(os.environ.get("KVSTORE_FUZZ_SEED", "0"))
PARSED = 50_000
"""Inputs of all parsers together."""
_ROUND = 10

T = TypeVar("T")


class Until:
    """The end of a test: a time, or a number of inputs. Counts them."""

    def __init__(self, *, seconds: float = float("inf"), inputs: float = float("inf")) -> None:
        self._until_s, self._inputs = time.monotonic() + seconds, inputs
        self.done = 0

    @property
    def reached(self) -> bool:
        return self.done >= self._inputs or time.monotonic() >= self._until_s


def explore(examples: SearchStrategy[T], run: Callable[[T], int], until: Until) -> None:
    """Runs what hypothesis makes of a seed, round by round. run: says how many inputs an example was.

    A failing example is not made smaller: what it left in a server may be why it failed, and then another does not.
    """

    def counted(example: T) -> None:
        if not until.reached:
            until.done += run(example)

    for number in itertools.count(SEED):
        _round(examples, counted, number)
        if until.reached:
            return


def _round(examples: SearchStrategy[T], run: Callable[[T], None], number: int) -> None:
    @seed(number)
    @settings(
        max_examples=_ROUND,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(examples)
    def one_round(example: T) -> None:
        run(example)

    one_round()
