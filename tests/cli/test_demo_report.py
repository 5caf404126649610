"""Sums of the demo and what follows from them."""

import dataclasses
import json

import pytest

from kvstore.cli.demo_report import Figures, Moved, Report


def figures() -> Figures:
    turn = Figures(blocks=10, matched=8, verified_bytes=2_000_000, missing={"expired": 1})
    turn.move("load, peer", 3_000_000_000, 2.0)
    turn.move("store, decode", 0, 1.0)
    return turn


def test_figures_travel_as_json() -> None:
    """What a worker sends is what its parent gets."""
    sent = figures()
    assert Figures.from_json(json.loads(json.dumps(dataclasses.asdict(sent)))) == sent


def test_paths_without_bytes_are_left_out() -> None:
    """A path over which nothing moved has no rate."""
    assert figures().moved == {"load, peer": Moved(3_000_000_000, 2.0)}


def test_sums_and_ratios() -> None:
    """Everything adds up, path by path and outcome by outcome."""
    report = Report(turns=2, sessions=1)
    report.sum.add(figures())
    report.sum.add(figures())
    found = report.as_json()
    assert (found["hit_ratio"], found["missing"], found["verified_bytes"]) == (0.8, {"expired": 2}, 4_000_000)
    assert found["paths"] == {"load, peer": {"bytes": 6_000_000_000, "seconds": 4.0, "gb_per_s": 1.5}}
    assert report.passed


def test_it_passes_only_with_bytes_that_were_right(capsys: pytest.CaptureFixture[str]) -> None:
    """One wrong layer fails the run, and so do a broken law and having compared nothing."""
    assert not Report().passed
    assert not Report(sum=Figures(verified_bytes=1), violations=["a slot too many"]).passed
    wrong = Report(sum=Figures(verified_bytes=1, mismatches=1))
    assert not wrong.passed
    wrong.show()
    assert "FAILED: wrong bytes" in capsys.readouterr().out
