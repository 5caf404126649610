"""`kvbench overhead`: metrics and logs beside none, in pairs."""

import json

import pytest

from kvbench import overhead
from kvbench.cli import main
from kvbench.overhead import SCRAPE_S, Measured, Scrapes, Spent, ratios, total


def test_ratios_are_those_of_the_pairs() -> None:
    """Not of the medians: what drifts from pair to pair weighs on neither side. A clock too coarse gives none."""
    slow_pair = {
        "with": Measured(Spent(20.0, 2.0), Spent(4.0, 0.0)),
        "without": Measured(Spent(10.0, 1.0), Spent(2.0, 0.0)),
    }
    same = Measured(Spent(1.0, 0.1), Spent(0.2, 0.0))
    pair = {"with": same, "without": same}
    found = ratios([pair, slow_pair, pair])
    assert (found["overhead_load"], found["overhead_load_low"], found["overhead_load_high"]) == (1.0, 1.0, 2.0)
    assert (found["overhead_load_cpu"], found["overhead_match"]) == (1.0, 1.0)
    assert 0 < found["overhead_level"] < 0.95
    assert "overhead_match_cpu" not in found


def test_turns_are_added_up() -> None:
    """Seconds, and those of the processors."""
    assert total([Spent(1.0, 0.5), Spent(2.0, 0.25)]) == (3.0, 0.75)


async def test_scrapes_come_once_in_a_second_of_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first turn has one, of every process; turns in which a second has not passed since have none."""
    asked: list[str] = []
    monkeypatch.setattr(overhead, "_scrape", asked.append)
    scrapes = Scrapes(["a", "b"])
    begun = []
    for _ in range(5):
        tasks = scrapes.begin()
        begun.append(len(tasks))
        for task in tasks:
            await task
        scrapes.passed(SCRAPE_S / 2)
    assert begun == [2, 0, 2, 0, 2]
    assert sorted(asked) == ["a", "a", "a", "b", "b", "b"]


@pytest.mark.ucx
@pytest.mark.parametrize("same", [False, True])
def test_two_real_clusters(capsys: pytest.CaptureFixture[str], same: bool) -> None:
    """One serves metrics and writes logs, one does neither; or neither does. Both load and match what they stored."""
    options = ("--bytes", "16MiB", "--slices", "2", "--tokens", "640", "--matches", "20", "--rounds", "1")
    assert main(["overhead", *options, *(["--same"] if same else []), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["cluster"] for row in found["measurements"]} == {
        "with metrics and logs",
        "without metrics and logs",
    }
    assert all(row["load_s"]["median"] > 0 and row["match_ms"]["median"] > 0 for row in found["measurements"])
    assert {f"overhead_{name}" for name in ("load", "load_cpu", "match", "match_cpu")} <= found["ratios"].keys()
    assert ("--metrics-listen" in found["settings"]["with"]) is not same


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--bytes", "32MiB"), "--bytes must be at least 16 slices of 4 MiB"),
        (("--matches", "9"), "--matches must be at least 10"),
        (("--slices", "0"), "slices must be positive"),
        (("--tokens", "63"), "tokens must be positive"),
    ],
)
def test_less_than_a_turn(capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str) -> None:
    """Is refused before anything starts."""
    assert main(["overhead", *options]) == 2
    assert said in capsys.readouterr().err
