"""`kvbench replay`: hit ratios of known traces, and of the production trace where there is one."""

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from kvbench import optimum, replay, trace
from kvbench.cli import main
from kvbench.trace import Request
from kvstore.errors import ConfigError, InvalidInput

TRACE = os.environ.get("KVSTORE_TRACE", "")
"""Path of the FAST'25 Mooncake conversation trace (docs/benchmarks.md says where it is from)."""


def written(folder: Path, requests: list[tuple[float, list[int]]]) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps({"timestamp": at_ms, "hash_ids": ids}) + "\n" for at_ms, ids in requests))
    return path


def replayed(path: Path, *options: str) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser()
    replay.add_arguments(parser)
    return replay.run(parser.parse_args(["--trace", str(path), *options])).measurements


def hit_ratios(path: Path, *options: str) -> list[float]:
    return [row["hit_ratio"] for row in replayed(path, *options)]


def conversations(count: int, seed: int = 1) -> list[tuple[float, list[int]]]:
    """Turns that share a system prompt; each conversation goes on with a chance of one half."""
    draw, requests, open_chains, names = random.Random(seed), [], [[0]], 1
    for number in range(count):
        chain = draw.choice(open_chains)
        new = list(range(names, names + draw.randint(1, 6)))
        names = new[-1] + 1
        requests.append((number * 1000.0, chain + new))
        if draw.random() < 0.5:
            open_chains.append(chain + new)
    return requests


def test_what_was_seen_is_found(tmp_path: Path) -> None:
    """The longest prefix counts, in blocks; a hole ends it."""
    path = written(tmp_path, [(0, [1, 2, 3]), (1, [1, 2, 4]), (2, [5, 2, 3])])
    (row,) = replayed(path, "--tier-blocks", "0", "--policy", "lru")
    assert row["hit_ratio"] == pytest.approx(2 / 9)
    # The names of a trace say the whole prefix, so this one is not possible in it; the ideal does not look at prefixes.
    assert row["ideal"] == pytest.approx(4 / 9)


def test_lru_forgets_and_belady_does_not(tmp_path: Path) -> None:
    """Two blocks fit; the third comes once, between two uses of the others."""
    path = written(tmp_path, [(0, [1]), (1, [2]), (2, [3]), (3, [1]), (4, [2])])
    (row,) = replayed(path, "--tier-blocks", "2", "--policy", "lru")
    assert row["hit_ratio"] == 0
    assert row["belady"] == row["ideal"] == pytest.approx(2 / 5)


@pytest.mark.parametrize(("kind", "expected"), [("sliding", 2 / 4), ("fixed", 1 / 4)])
def test_times_to_live(tmp_path: Path, kind: str, expected: float) -> None:
    """A block that is used every 8 s lives on under a sliding 10 s, and ends under a fixed one."""
    path = written(tmp_path, [(0, [1]), (8000, [1]), (16000, [1]), (26000, [1])])
    assert hit_ratios(path, "--tier-blocks", "0", "--policy", "lru", "--ttl", "10", "--ttl-kind", kind) == [expected]


def test_a_row_for_every_setting(tmp_path: Path) -> None:
    """Policies × sizes × times; no bound finds all that can be found, and no policy more than Belady's."""
    path = written(tmp_path, conversations(300))
    rows = replayed(path, "--tier-blocks", "30,100,0", "--policy", "lru,likely", "--ttl", "20,0")
    assert len(rows) == 12
    for row in rows:
        assert row["hit_ratio"] <= row["belady"] <= row["ideal"]
        if not row["tier_blocks"] and not row["ttl_s"]:
            assert row["hit_ratio"] == row["ideal"]
        if row["policy"] == "lru":
            assert row["hit_ratio"] == row["lru"]


def test_belady_is_the_best_of_all_choices(tmp_path: Path) -> None:
    """Against every sequence of victims, on traces small enough to try them all."""
    for seed in range(30):
        draw = random.Random(seed)
        requests = [Request(at, (draw.randrange(4),)) for at in range(8)]
        assert optimum.belady(requests, 2) == pytest.approx(_best(requests, frozenset()) / 8)


def _best(requests: list[Request], held: frozenset[int]) -> int:
    if not requests:
        return 0
    (name,) = requests[0].blocks
    after = [held | {name}] if len(held | {name}) <= 2 else [(held | {name}) - {victim} for victim in held | {name}]
    return (name in held) + max(_best(requests[1:], choice) for choice in after)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object on standard output and in the file; all ratios are fractions."""
    path, out = written(tmp_path, conversations(100)), tmp_path / "result.json"
    options = ["--tier-blocks", "40", "--policy", "likely", "--ttl", "0", "--json", "--out", str(out)]
    assert main(["replay", "--trace", str(path), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(out.read_text())
    assert found["bench"] == "replay"
    assert found["hit_ratio"] == found["measurements"][0]["hit_ratio"]
    assert 0 < found["hit_ratio"] < found["ideal_hit_ratio"] < 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2: timestamp and hash_ids are needed"),
        ("7", "line 2: timestamp and hash_ids are needed"),
        ('{"timestamp": 5}', "line 2: timestamp and hash_ids are needed"),
        ('{"timestamp": "x", "hash_ids": []}', "line 2: timestamp and hash_ids are needed"),
        ('{"timestamp": 5, "hash_ids": 3}', "line 2: timestamp and hash_ids are needed"),
        ('{"timestamp": -1, "hash_ids": [1]}', "line 2: the time falls"),
        ('{"timestamp": 5, "hash_ids": [1, 1]}', "line 2: a block comes twice"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, line: str, expected: str) -> None:
    """With the line."""
    path = written(tmp_path, [(0, [1])])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InvalidInput, match=expected):
        trace.read(path)


def test_no_file_and_no_request(tmp_path: Path) -> None:
    """Both are said in one line."""
    with pytest.raises(InvalidInput, match="No such file"):
        trace.read(tmp_path / "absent.jsonl")
    with pytest.raises(InvalidInput, match="no request in it"):
        trace.read(written(tmp_path, []))


def test_senseless_settings_are_refused(tmp_path: Path) -> None:
    """An unknown policy, a negative size or time."""
    path = written(tmp_path, [(0, [1])])
    with pytest.raises(ConfigError, match="did you mean 'likely'"):
        replayed(path, "--policy", "likeli")
    for options in (("--tier-blocks", "-1"), ("--ttl", "-1"), ("--ttl", "nan"), ("--ttl", "inf")):
        with pytest.raises(InvalidInput, match=options[0]):
            replayed(path, *options)


@pytest.mark.skipif(not TRACE, reason="KVSTORE_TRACE names no production trace")
@pytest.mark.timeout(600)
def test_the_production_trace() -> None:
    """LRU as published figures have it; what is learned is better wherever room is short."""
    sizes = ["10000", "20000", "50000"]
    rows = replayed(Path(TRACE), "--tier-blocks", ",".join(sizes), "--policy", "likely")
    for row, lru, likely in zip(rows, (0.211, 0.287, 0.354), (0.220, 0.296, 0.355), strict=True):
        assert lru <= row["lru"] <= lru + 0.004
        assert likely <= row["hit_ratio"] <= row["ideal"]
        assert row["belady"] == pytest.approx(0.366, abs=0.001)


@pytest.mark.skipif(not TRACE, reason="KVSTORE_TRACE names no production trace")
@pytest.mark.timeout(600)
def test_times_to_live_of_the_production_trace() -> None:
    """Sliding, without bound: 5, 10, 30 minutes and for ever."""
    found = hit_ratios(Path(TRACE), "--tier-blocks", "0", "--policy", "lru", "--ttl", "300,600,1800,0")
    assert found == pytest.approx([0.288, 0.343, 0.364, 0.3664], abs=0.002)
