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


def test_table_shows_points_ratios_and_extras(capsys: pytest.CaptureFixture[str]) -> None:
    """Points need not have the same columns; floats have three digits."""
    points = [{"path": "a [b]", "gb_per_s": 1.23456}, {"path": "c", "p50_ms": 7}]
    figures = Result("x", machine.describe(), {}, ("path",), points, {"vs_y": 0.98765}, ["slow"], {"p50_ms": 4.5678})
    table.show(figures)
    text = capsys.readouterr().out
    for words in ("a [b]", "1.23", "7", "vs_y", "0.988", "p50_ms: 4.57", "warning: slow"):
        assert words in text


def test_machine_is_described() -> None:
    """What a figure depends on is in every result, JSON-safe."""
    found = json.loads(json.dumps(machine.describe()))
    assert found["cpus"] >= 1
    assert found["memory_bytes"] > 2**20
    assert {"kvstore", "grpcio", "numpy"} <= set(found["versions"])
