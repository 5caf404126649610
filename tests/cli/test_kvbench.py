"""The console script `kvbench` and what its benches share."""

import json

import pytest

from kvbench import machine, table
from kvbench.cli import COMMANDS, main
from kvbench.result import Result, parse


@pytest.mark.parametrize("name", COMMANDS)
def test_each_bench_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every bench of the table can be imported, and has --json."""
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is the object and nothing else."""
    assert main(["keys", "--rounds", "2", "--tokens", "640", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"p50_ms", "p99_ms"} <= set(found)
    assert parse(found, "stdout").bench == "keys"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("keys", "--seed", "-1"), "--seed: '-1' is no whole number of 0 or more"),
        (("ops", "--warm-up", "-1"), "--warm-up: '-1' is no whole number of 0 or more"),
        (("keys", "--out", "/nowhere/x.json"), "--out: /nowhere: no such directory"),
        (("keys", "--out", "/"), "--out: /: a directory"),
    ],
)
def test_what_would_spoil_a_run_is_refused_before_it(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A measurement that took minutes is not lost for a directory that is absent, nor cut from the wrong end."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_table_shows_points_ratios_and_extras(capsys: pytest.CaptureFixture[str]) -> None:
    """Points need not have the same columns; floats have three digits."""
    points = [
        {"path": "a [b]", "gb_per_s": 1.23456, "curves": {"ttft_s": [[1.0, 0.5]]}},
        {"path": "c", "p50_ms": 7, "from": {"nvme, relay": 0.51234, "dram, local": 0.25}},
    ]
    figures = Result("x", machine.describe(), {}, ("path",), points, {"vs_y": 0.98765}, ["slow"], {"p50_ms": 4.5678})
    table.show(figures)
    text = capsys.readouterr().out
    for words in ("a [b]", "1.23", "7", "vs_y", "0.988", "p50_ms: 4.57", "warning: slow"):
        assert words in text
    assert "nvme, relay 0.512; dram, local 0.25" in text
    assert "curves" not in text


def test_machine_is_described() -> None:
    """What a figure depends on is in every result, JSON-safe."""
    found = json.loads(json.dumps(machine.describe()))
    assert {"kernel", "nics", "transports", "disks", "gpus", "versions", "load_average"} <= set(found)
    assert "lo" in found["nics"]
    assert found["transports"]
    assert found["cpus"] >= 1
    assert found["memory_bytes"] > 2**20
    assert {"kvstore", "grpcio", "numpy"} <= set(found["versions"])
