"""Two results compared: verdicts do not depend on units or order, and what fails in CI is what got worse."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench import compare, figures, noise, yardsticks
from kvbench.cli import main
from kvbench.figures import Figure, Verdict, judge
from kvbench.result import Result
from kvstore.errors import InvalidInput

values = st.floats(1e-3, 1e6)
# None so small that a range is lost in the rounding of its value.
spreads = st.integers(0, 50_000).map(lambda part: part / 100_000)
some_figures = st.builds(Figure, values, spreads)
parts = st.floats(0.0, 0.3)
OPPOSITE = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}


def example(gb_per_s: list[float], ms: list[float] | None = None, **changes: object) -> Result:
    rows = [{"path": "a", "gb_per_s": noise.summary(gb_per_s), "ms": noise.summary(ms or [4.0, 4.1, 4.2]), "blocks": 7}]
    made = Result("x", {"cpus": 1}, {"rounds": 3}, ("path",), rows, {"vs_y": 0.5}, [], {"p50_ms": 4.1})
    return replace(made, **changes)  # type: ignore[arg-type]


@given(some_figures, parts)
def test_what_is_equal_is_the_same(figure: Figure, at_least: float) -> None:
    """Whatever its noise."""
    assert judge("gb_per_s", figure, figure, at_least) is Verdict.SAME


@given(some_figures, some_figures, parts)
def test_what_is_worse_one_way_is_better_the_other(old: Figure, new: Figure, at_least: float) -> None:
    """And a figure of which less is better is judged the other way round."""
    there, back = judge("gb_per_s", old, new, at_least), judge("gb_per_s", new, old, at_least)
    assert back is OPPOSITE.get(there, there)
    assert judge("p50_ms", old, new, at_least) is back
    assert (judge("blocks", old, new, at_least) is Verdict.SAME) == (there is Verdict.SAME)


@given(some_figures, some_figures, parts, st.sampled_from([2.0**-10, 2.0**10]))
def test_units_do_not_matter(old: Figure, new: Figure, at_least: float, scale: float) -> None:
    """Seconds or milliseconds."""
    scaled = [replace(each, value=each.value * scale) for each in (old, new)]
    assert judge("ms", *scaled, at_least) is judge("ms", old, new, at_least)


@given(values, spreads, spreads, st.floats(1.01, 5.0))
def test_what_moves_beyond_both_ranges_is_told(value: float, old: float, new: float, factor: float) -> None:
    """Within them it is not."""
    reach = value * (old + new) / (2 - new) if new < 2 else 0.0  # where the half ranges meet
    before = Figure(value, old)
    assert judge("gb_per_s", before, Figure(value + factor * reach + 1e-9, new), 0.0) is Verdict.BETTER
    assert judge("gb_per_s", before, Figure(value + reach / factor, new), 0.0) is Verdict.SAME or reach == 0.0


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("gb_per_s", 1),
        ("published_blocks_per_s", 1),
        ("get_vs_mooncake_store", 1),
        ("vs_memcpy", 1),
        ("single_of_limit", 1),
        ("hit_ratio", 1),
        ("goodput_vs_single", 1),
        ("lru, 10000 blocks, ttl none: of the ideal", 1),
        ("ms", -1),
        ("p50_ms", -1),
        ("cpu_s_per_gb", -1),
        ("open_s", -1),
        ("failed", -1),
        ("put_in_rpcs", -1),
        ("overhead_seconds", -1),
        ("first_group_share", -1),
        ("snic_max_vs_mean", -1),
        ("handoff_p50_vs_alone", -1),
        ("lost_sets", -1),
        ("missing_blocks", -1),
        ("attained", 1),
        ("goodput_per_s", 1),
        ("dual_of_oracle", 1),
        ("ttft_p50_s", 0),
        ("memory_bytes_per_block", -1),
        ("blocks", 0),
        ("items", 0),
    ],
)
def test_names_say_what_is_better(name: str, sign: int) -> None:
    """Those of the benches that there are."""
    assert figures.better(name) == sign


def test_a_slower_run_is_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, with the point, both medians and the change; the other way round it is 0."""
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(example([2.0, 2.02, 2.04]).to_json())
    new.write_text(example([1.0, 1.01, 1.02], [4.0, 4.1, 4.2]).to_json())
    assert main(["compare", str(old), str(new), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    (row,) = found["measurements"]
    assert (row["point"], row["figure"], row["verdict"], row["change"]) == ("a", "gb_per_s", "worse", "-50.0%")
    assert (found["worse"], found["better"], found["changed"], found["same"], found["compared"]) == (1, 0, 0, 4, 5)
    assert main(["compare", str(new), str(old)]) == 0
    assert "better" in capsys.readouterr().out


def test_noise_and_small_changes_are_none() -> None:
    """As far as the repetitions of either differ, and below what was asked for."""
    steady, noisy = example([2.0, 2.0, 2.0]), example([1.5, 1.8, 2.5])
    assert compare.compared(steady, noisy, 0.05).exit_code == 0
    slower = example([1.9, 1.9, 1.9])
    assert compare.compared(steady, slower, 0.06).exit_code == 0
    assert compare.compared(steady, slower, 0.04).exit_code == 1


def test_ratios_have_the_noise_of_the_run() -> None:
    """They are judged by the median spread of the figures."""
    old = example([2.0, 2.1, 2.2], [4.0, 4.2, 4.4])
    assert compare.compared(old, replace(old, ratios={"vs_y": 0.46}), 0.0).exit_code == 0
    assert compare.compared(old, replace(old, ratios={"vs_y": 0.4}), 0.0).exit_code == 1


def serving(goodput: float, ratio: float, **more: float) -> Result:
    row: dict[str, object] = {"way": "dual path", "goodput_per_s": goodput, "lost_sets": 0, **more}
    return Result("agents", {}, {"tolerance": 0.12}, ("way",), [row], {"dual_vs_single": ratio})


def test_a_goodput_is_as_exact_as_its_search() -> None:
    """What two searches may differ by is no change; latencies rise with the goodput, and tails are not judged."""
    old = serving(4.0, 1.8, ttft_p50_s=1.0, ttft_p99_s=2.0)
    assert compare.compared(old, serving(3.5, 1.5), 0.05).exit_code == 0
    assert compare.compared(old, serving(3.0, 1.8), 0.05).exit_code == 1
    assert compare.compared(old, serving(4.0, 1.3), 0.05).exit_code == 1
    faster = compare.compared(old, serving(6.0, 1.8, ttft_p50_s=1.5, ttft_p99_s=4.0), 0.05)
    assert {row["figure"]: row["verdict"] for row in faster.measurements} == {
        "goodput_per_s": "better",
        "ttft_p50_s": "changed",
    }


@pytest.mark.parametrize("name", [yardsticks.SOCKET, yardsticks.NIXL, yardsticks.FIO])
def test_what_stands_beside_is_no_regression(name: str) -> None:
    """A slower disk, or another system that is slower, is no fault of ours, and no merit; nor is another limit."""
    rows = [{"contestant": name, "gb_per_s": 2.0}, {"contestant": "fabric", "gb_per_s": 1.0, "limit_gb_per_s": 4.0}]
    old = Result("x", {}, {}, ("contestant",), rows, {})
    for factor in (0.5, 2.0):
        moved = [{**rows[0], "gb_per_s": 2.0 * factor}, {**rows[1], "limit_gb_per_s": 4.0 * factor}]
        found = compare.compared(old, replace(old, measurements=moved), 0.05)
        assert found.exit_code == 0
        assert [row["verdict"] for row in found.measurements] == ["changed", "changed"]
    slower = replace(old, measurements=[rows[0], {**rows[1], "gb_per_s": 0.5}])
    assert compare.compared(old, slower, 0.05).exit_code == 1


def test_lost_blocks_fail() -> None:
    """Also where none were lost before, which has no change in percent."""
    old = serving(4.0, 1.8)
    new = replace(old, measurements=[{**old.measurements[0], "lost_sets": 1}])
    assert compare.compared(old, new, 0.05).exit_code == 1


def test_all_shows_what_is_the_same() -> None:
    """One row per figure, and none without it."""
    one = example([2.0, 2.1])
    assert compare.compared(one, one, 0.05).measurements == []
    assert {row["figure"] for row in compare.compared(one, one, 0.05, show_all=True).measurements} == {
        "gb_per_s",
        "ms",
        "blocks",
        "vs_y",
        "p50_ms",
    }


def test_what_makes_the_comparison_doubtful_is_said() -> None:
    """Another machine, other settings, points of one run only, noise."""
    old = example([2.0, 2.1])
    row = {"path": "b", "gb_per_s": noise.summary([1.0, 9.0])}
    new = replace(old, machine={"cpus": 2}, settings={"rounds": 9}, measurements=[*old.measurements, row])
    said = "\n".join(compare.compared(old, new, 0.05).warnings)
    for part in (
        "not the same machine: cpus",
        "settings: rounds",
        "only in NEW: 1 figures, as gb_per_s of b",
        "NEW: noisy",
    ):
        assert part in said


@pytest.mark.parametrize(
    "other", [{"bench": "y"}, {"keys": ("blocks",)}, {"measurements": [], "ratios": {}, "extras": {}}]
)
def test_what_has_nothing_in_common_is_refused(other: dict[str, object]) -> None:
    """Exit code 2, not 0: nothing was compared."""
    with pytest.raises(InvalidInput, match=r"in common|nothing to compare"):
        compare.compared(example([1.0]), example([1.0], **other), 0.05)


def test_parts_are_parsed() -> None:
    """With and without a sign; nonsense is refused in words."""
    assert compare.part("5%") == compare.part("0.05")
    for text in ("-1%", "x", "nan", "inf"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no part"):
            compare.part(text)


@pytest.mark.parametrize(("content", "said"), [("[]", "object is needed"), ("{", "not JSON"), (None, "No such file")])
def test_files_that_are_no_results(
    content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They end with one line that names the file."""
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    assert main(["compare", str(path), str(path)]) == 2
    assert said in capsys.readouterr().err
