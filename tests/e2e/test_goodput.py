"""`kvbench agents` and `kvbench goodput`, small: figures mean nothing here; what is served, and from where, does."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kvbench import testbed
from kvbench.cli import main

pytestmark = [
    pytest.mark.ucx,
    pytest.mark.netns,
    pytest.mark.skipif(bool(testbed.why_not()), reason=testbed.why_not()),
]


@pytest.fixture
def engine(tmp_path: Path) -> str:
    """Fast enough that nothing waits for it."""
    path = tmp_path / "engine.json"
    fields = {"name": "fast", "token_bytes": 131_072, "prefill": [[0, 1e6]], "decode": [[0, 500.0]]}
    path.write_text(json.dumps(fields))
    return str(path)


def measured(capsys: pytest.CaptureFixture[str], *command: str) -> dict[str, Any]:
    assert main([*command, "--testbed", "--ttft", "10", "--tpot", "1", "--json"]) == 0
    assert not [name for name in testbed.names() if name.startswith(f"p{os.getpid()}n")]
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def trials(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [trial for row in found["measurements"] for trial in row["tried"]]


def came(row: dict[str, Any], what: str) -> float:
    """The part of the loaded bytes that came from this tier or by this route."""
    return sum(part for source, part in row["from"].items() if what in source.split(", "))


def test_agents_read_their_history_from_storage(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every turn is answered, nearly all of its prompt is loaded, over the NICs of its way, and from the disk."""
    found = measured(
        capsys,
        *("agents", "--engine", engine, "--shape", "32k", "--pool", "16", "--turn-gap", "0.1", "--duration", "4"),
        *("--ways", "single path,dual path", "--rate-max", "2", "--scale", "128", "--path", str(tmp_path)),
    )
    single, dual = found["measurements"]
    assert (single["way"], dual["way"]) == ("single path", "dual path")
    assert not any(trial["failed"] for trial in trials(found))
    assert all(trial["requests"] > 3 for trial in trials(found))
    for row in (single, dual):
        assert row["goodput_per_s"] > 0
        assert row["hit_ratio"] > 0.85
        assert sum(row["from"].values()) == pytest.approx(1.0)
        assert 0 < row["ttft_p50_s"] <= row["second_p50_s"]
        assert row["curves"]["ttft_s"][-1][1] == 1.0
        assert came(row, "nvme") > 0.1
    assert came(single, "relay") == 0.0
    assert came(dual, "relay") > 0
    assert found["ratios"]["dual_vs_single"] > 0
    assert found["settings"]["shape"] == "32k"


def test_a_trace_is_served_at_its_own_times(engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the rate that was asked for, once for each way; what no cache holds is computed, the rest comes from storage
    or costs nothing."""
    path = tmp_path / "trace.jsonl"
    prompts = [[0, 1, 2], [0, 1, 3], [0, 1, 2, 4], [5, 6], [0, 1, 7]]
    path.write_text(
        "".join(
            json.dumps({"timestamp": 500 * at, "input_length": 512 * len(ids), "output_length": 40, "hash_ids": ids})
            + "\n"
            for at, ids in enumerate(prompts)
        )
    )
    found = measured(
        capsys,
        *("goodput", "--trace", str(path), "--skip", "1", "--requests", "4", "--speed", "2", "--tier", "dram"),
        *("--engine", engine, "--ways", "no cache,dual path,oracle"),
    )
    assert [row["way"] for row in found["measurements"]] == ["no cache", "dual path", "oracle"]
    assert [trial["rate"] for trial in trials(found)] == pytest.approx([4 / 1.5 * 2] * 3)
    assert [trial["requests"] for trial in trials(found)] == [4] * 3
    assert not any(trial["failed"] for trial in trials(found))
    none, dual, oracle = found["measurements"]
    assert none["hit_ratio"] == 0.0
    assert dual["hit_ratio"] >= 4 * 512 / (12 * 512)
    assert none["from"] == oracle["from"] == {}
    assert any(source.startswith("dram") for source in dual["from"])
