"""`kvbench overhead`: metrics and logs beside none, in pairs."""

import json

import pytest

from kvbench.cli import main
from kvbench.overhead import Measured, ratios


def test_ratios_are_those_of_the_pairs() -> None:
    """Not of the medians: what drifts from pair to pair weighs on neither side. A clock too coarse gives none."""
    slow_pair = {"with": Measured(20.0, 2.0, 0.020, 0.0), "without": Measured(10.0, 1.0, 0.010, 0.0)}
    pair = {"with": Measured(1.0, 0.1, 0.001, 0.0), "without": Measured(1.0, 0.1, 0.001, 0.0)}
    found = ratios([pair, slow_pair, pair])
    assert (found["overhead_load"], found["overhead_load_low"], found["overhead_load_high"]) == (1.0, 1.0, 2.0)
    assert found["overhead_match"] == 1.0
    assert 0 < found["overhead_level"] < 0.95
    assert "overhead_match_cpu" not in found


@pytest.mark.ucx
def test_two_real_clusters(capsys: pytest.CaptureFixture[str]) -> None:
    """One serves metrics and writes logs, one does neither; both load and match what they stored."""
    options = ("--bytes", "8MiB", "--tokens", "640", "--matches", "3", "--rounds", "1")
    assert main(["overhead", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["cluster"] for row in found["measurements"]} == {
        "with metrics and logs",
        "without metrics and logs",
    }
    assert all(row["load_s"]["median"] > 0 and row["match_ms"]["median"] > 0 for row in found["measurements"])
    assert found["ratios"]["overhead_load"] > 0


def test_nothing_to_load(capsys: pytest.CaptureFixture[str]) -> None:
    """Less than one block is refused before anything starts."""
    assert main(["overhead", "--bytes", "1MiB"]) == 2
    assert "bytes must be positive" in capsys.readouterr().err
