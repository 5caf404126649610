"""What the benches that serve requests make of their options, and when a trial is over."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest

from kvbench import agents, goodput, serving_options, serving_result, testbed_options, trace
from kvbench.cli import main
from kvbench.serving import Trial
from kvbench.serving_engine import layout_of
from kvbench.serving_options import Estimate, Load
from kvbench.serving_run import Found, Tried, likely_rate
from kvbench.slo import Attainment, Served, Slo
from kvbench.workload import SHAPES, Agents
from kvstore.errors import InvalidInput

SLO = Slo(4.0, 0.05)
LOAD = Load(prompt=33_150.0, history=32_721.0, generated=176.0)


def asked(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    agents.add_arguments(parser)
    return parser.parse_args(["--testbed", *options])


def estimate(*options: str) -> Estimate:
    args = asked(*options)
    prefills, decodes = serving_options.hosts(testbed_options.topology(args), args)
    return serving_options.estimate(args, LOAD, serving_options.scaled(args).engine, prefills, decodes)


@pytest.mark.parametrize("engine", ["qwen2.5-32b", "deepseek-v3.2"])
@pytest.mark.parametrize("scale", [64, 512, 1000])
@pytest.mark.parametrize("snic_mbit", [100, 320, 1000])
def test_scaling_keeps_the_time_of_a_load_to_that_of_a_prefill(engine: str, scale: int, snic_mbit: int) -> None:
    """Whatever bytes and NICs are scaled by: as on a node with one storage NIC of 400 Gbit/s."""
    scaled = serving_options.scaled(asked("--engine", engine, "--scale", str(scale), "--snic-mbit", str(snic_mbit)))
    there = scaled.model.token_bytes * 8 / 400e9 / scaled.model.prefill_s(32_721, 33_150)
    here = scaled.engine.token_bytes * 8 / (snic_mbit * 1e6) / scaled.engine.prefill_s(32_721, 33_150)
    assert here == pytest.approx(there)
    assert layout_of(scaled.engine.token_bytes, 256).block_bytes == 256 * scaled.engine.token_bytes


def test_an_estimate_is_what_ends_first() -> None:
    """History over one NIC, over two, and none at all; more prefill nodes have more of both."""
    guess = estimate()
    nic_bytes = 320e6 / 8
    assert guess.of("single path") == pytest.approx(nic_bytes / ((LOAD.history - 128) * 512), rel=1e-3)
    assert guess.of("dual path") == pytest.approx(2 * guess.of("single path"))
    assert estimate("--helpers", "3").of("dual path") == pytest.approx(4 * guess.of("single path"))
    assert guess.of("no cache") < guess.of("single path")
    assert guess.of("oracle") > guess.of("dual path")
    more = estimate("--prefills", "2")
    for way, times in (("single path", 2), ("dual path", 1.5), ("oracle", 2), ("no cache", 2)):
        assert more.of(way) == pytest.approx(times * guess.of(way))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--scale", "0"], "--scale"),
        (["--block-tokens", "100"], "--block-tokens"),
        (["--helpers", "0"], "--helpers"),
        (["--ttft", "0"], "--ttft"),
        (["--tolerance", "-1"], "--tolerance"),
        (["--duration", "0"], "--duration"),
        (["--turns", "0"], "--turns"),
        (["--tpot", "0.001"], "--tpot"),
        (["--engine", "gpt"], "--engine"),
    ],
)
def test_what_no_run_can_be_made_of_is_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the option's name and exit code 2, before any host is made."""
    assert main(["agents", "--testbed", *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--skip", "-1"], ["--requests", "1"], ["--skip", "9"], ["--speed", "-1"]])
def test_a_stretch_that_the_trace_lacks_is_refused(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With how many requests there are."""
    path = written(tmp_path, [{"timestamp": n, "input_length": 5, "output_length": 5, "hash_ids": [n]} for n in (1, 2)])
    assert main(["goodput", "--testbed", "--trace", str(path), "--skip", "0", "--requests", "2", *options]) == 2
    assert "together 2" in capsys.readouterr().err


def written(folder: Path, requests: list[dict[str, Any]]) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


@pytest.mark.parametrize(
    "wrong", [{"input_length": 0}, {"input_length": 513}, {"output_length": -1}, {"hash_ids": [-1]}, {"hash_ids": []}]
)
def test_a_trace_whose_lengths_do_not_fit_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """An id stands for 512 tokens of the prompt, the last for what is left; replays of blocks alone need none of it."""
    good = {"timestamp": 0, "input_length": 512, "output_length": 3, "hash_ids": [1]}
    (request,) = trace.read_with_lengths(written(tmp_path, [good]))
    assert (request.input_tokens, request.output_tokens) == (512, 3)
    path = written(tmp_path, [good, good | wrong])
    with pytest.raises(InvalidInput, match=r"request 2|line 2"):
        trace.read_with_lengths(path)
    if wrong != {"hash_ids": []}:
        assert len(trace.read(path)) == 2


def test_history_is_what_came_before() -> None:
    """In the stretch and before it; the rest of a prompt is computed."""
    before, one, other = (
        trace.Request(0, blocks, 512 * (len(blocks) - 1) + 7, 3) for blocks in ((0, 1), (0, 2, 3), (0, 2, 4))
    )
    assert goodput._lengths(goodput.Traced([before], [one, other])) == [(1031, 512, 3), (1031, 1024, 3)]
    assert Load.of([(1031, 512, 3), (1031, 1024, 3)]) == Load(1031.0, 768.0, 3.0)


def trial(rate: float = 5.0) -> Trial:
    return Trial(Agents(SHAPES["64k"], 4, 1, 1.0, 1).workload(rate, 10.0, 1.0, 1), SLO, skip_s=2.0, end_s=10.0)


def served(ttft_s: float) -> Served:
    return Served(0.0, ttft_s, ttft_s + 0.01, ttft_s + 0.1, generated=10)


def test_a_trial_is_lost_when_the_rest_cannot_make_up() -> None:
    """Of 40 requests that are planned four may miss: answered late or still without a first token, it is the same."""
    given = trial()
    assert given.planned == 40
    for ttft_s in (1.0, 5.0, 5.0):
        given.tell(served(ttft_s))
    given.waiting |= {1: 100.0, 2: 100.0, 3: 103.0}
    assert not given.lost(103.9)
    assert not given.lost(104.1)
    assert given.lost(107.1)
    assert given.attainment(5.0) == Attainment(5.0, 3 / 8, 3, 1)
    given.to_end = True
    assert not given.lost(107.1)
    given.give_up(104.1)
    assert given.attainment(5.0) == Attainment(5.0, 5.0, 5, 1, early=True), "who waits in vain has missed"


def tried(rate: float, met: int, early: bool = False, ttft_s: float = 1.0) -> Tried:
    return Tried(Attainment(rate, rate * 0.9, 10, met, early), [served(ttft_s)] * 10, 0.9, 0.5, 1.0)


def test_a_search_begins_where_the_one_before_has_ended() -> None:
    """An estimate is wrong by as much as it was for the way before; nothing follows from a way that was never good."""
    guess = {"single path": 2.0, "dual path": 4.0}.__getitem__
    good, bad = (Found("single path", True, [tried(1.0, met), tried(3.0, 8)]) for met in (10, 8))
    assert likely_rate(guess, "dual path", good) == pytest.approx(2.0)
    assert likely_rate(guess, "dual path", bad) == likely_rate(guess, "dual path", None) == 4.0


def test_a_ways_figures_are_those_of_its_best_trial() -> None:
    """Its goodput is what really came in it; a way that never was good enough has none."""
    found = Found("dual path", True, [tried(2.0, 10), tried(4.0, 9, ttft_s=2.0), tried(5.0, 8), tried(6.0, 10, True)])
    row = serving_result.row(found)
    assert row["goodput_per_s"] == pytest.approx(3.6)
    assert (row["attained"], row["requests"]) == (0.9, 10)
    assert row["ttft_p50_s"] == pytest.approx(2.0)
    assert {name for name in row if name.endswith("p90_s")} == {"ttft_p90_s", "tpot_p90_s", "second_p90_s"}
    assert [each["rate"] for each in row["tried"]] == [2.0, 4.0, 5.0, 6.0]
    slow = Found("single path", True, [tried(2.0, 8, ttft_s=3.0), tried(1.0, 8, ttft_s=5.0)])
    assert serving_result.row(slow)["goodput_per_s"] == 0.0
    assert serving_result.row(slow)["ttft_p50_s"] == pytest.approx(5.0)
    assert serving_result.ratios([found, slow]) == {}
    half = Found("single path", False, [tried(2.0, 10)])
    assert serving_result.ratios([found, half]) == {"dual_vs_single": pytest.approx(2.0)}
    assert [text.partition(":")[0] for text in serving_result.warnings([found, slow, half], 8)] == ["single path"] * 2
    assert len(serving_result.warnings([found], 1)) == 1


def test_a_row_of_failures_is_still_json() -> None:
    """Nothing was answered: no percentile, and the reason is said."""
    gone = Tried(Attainment(1.0, 1.0, 1, 0), [Served(0.0, failed="gone")], 0.0, 0.0, 0.1)
    found = Found("oracle", True, [gone])
    assert "NaN" not in json.dumps(serving_result.row(found))
    assert serving_result.row(found)["tried"][0]["failed"] == {"gone": 1}
    assert any("gone" in text for text in serving_result.warnings([found], 2))
    assert math.isclose(serving_result.row(found)["attained"], 0.0)
