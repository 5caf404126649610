"""The form of results, and what repeated measurements come to."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench import noise, progress, result, table, transports
from kvbench.result import Result
from kvstore.errors import InvalidInput

positive = st.floats(0.001, 1e6)


def example() -> Result:
    rows = [{"path": "a", "gb_per_s": noise.summary([1.0, 2.0]), "bytes": 7}]
    return Result("x", {"cpus": 1}, {"rounds": 2}, ("path",), rows, {"vs_y": 0.5}, ["noisy"], {"p50_ms": 4.5})


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Headlines at the top level are told from the form's own fields."""
    path = tmp_path / "x.json"
    path.write_text(example().to_json())
    assert result.read(path) == example()
    assert list(example().named()) == [("a",)]


@pytest.mark.parametrize(
    "name", ["schema", "bench", "machine", "settings", "keys", "measurements", "ratios", "warnings"]
)
def test_what_is_no_result_is_refused(name: str, tmp_path: Path) -> None:
    """With the file and the field."""
    path = tmp_path / "x.json"
    fields = json.loads(example().to_json())
    for broken in ({**fields, name: None}, {key: value for key, value in fields.items() if key != name}):
        path.write_text(json.dumps(broken))
        with pytest.raises(InvalidInput, match=f"x.json: .*{name}"):
            result.read(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 1}, "run the bench again"),
        ({"measurements": [7]}, "measurement"),
        ({"ratios": {"vs_y": "fast"}}, "ratios"),
        ({"keys": [1]}, "keys"),
    ],
)
def test_what_is_half_a_result_is_refused(change: dict[str, object], said: str) -> None:
    """Also where the outer form is right."""
    with pytest.raises(InvalidInput, match=said):
        result.parse(json.loads(example().to_json()) | change, "x")


@pytest.mark.parametrize("change", [{"spread": None}, {"median": "x"}, {"p99": []}])
def test_figures_that_are_none_are_refused(change: dict[str, object]) -> None:
    """Before anybody calculates with them: `compare` would end as if something had become worse."""
    fields = json.loads(example().to_json())
    fields["measurements"][0]["gb_per_s"] |= change
    with pytest.raises(InvalidInput, match=r"x\.json: medians"):
        result.parse(fields, "x.json")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """Absent, and not JSON."""
    with pytest.raises(InvalidInput, match="No such file"):
        result.read(tmp_path / "none.json")
    (tmp_path / "text").write_text("no JSON")
    with pytest.raises(InvalidInput, match="not JSON"):
        result.read(tmp_path / "text")
    with pytest.raises(InvalidInput, match="an object is needed"):
        result.parse([], "x")


@given(st.lists(st.lists(positive, min_size=1, max_size=5), min_size=1, max_size=6))
def test_a_summary_is_in_order(repetitions: list[list[float]]) -> None:
    """Percentiles rise and are among the values; the spread does not depend on the unit."""
    found = noise.summary(repetitions)
    values = [value for one in repetitions for value in one]
    assert min(values) <= found["median"] == found["p50"] <= found["p90"] <= found["p99"] <= max(values)
    assert found["count"] == len(values)
    in_ms = noise.summary([[value * 1e3 for value in one] for one in repetitions])
    assert in_ms["spread"] == pytest.approx(found["spread"])


@given(st.lists(positive, min_size=1, max_size=40), st.integers(1, 8))
def test_a_long_run_is_cut_into_repetitions(values: list[float], count: int) -> None:
    """Nothing is lost, in order, in so many parts at most."""
    cut = noise.parts(values, count)
    assert [value for part in cut for value in part] == values
    assert len(cut) <= count
    assert all(cut)


def test_noise_is_warned_of() -> None:
    """Beyond the bound that is stated, with the worst point; equal repetitions and single ones are no noise."""
    steady = {"path": "a", "gb_per_s": noise.summary([1.0, 1.1]), "seconds": noise.summary([3.0])}
    assert list(noise.warnings(("path",), [steady])) == []
    (said,) = noise.warnings(("path",), [steady, {"path": "b", "gb_per_s": noise.summary([1.0, 2.0])}])
    assert "gb_per_s of b" in said
    assert "25%" in said
    assert "67%" in said
    (said,) = noise.warnings(("path",), [{"path": "a", "seconds": noise.summary([3.0])}])
    assert "measured once" in said
    assert list(noise.warnings(("path",), [{"path": "a", "hit_ratio": 0.5}])) == []


def test_a_slow_transport_is_warned_of() -> None:
    """Sockets are slow only where there is something better."""
    assert list(transports.slow("tcp", 0)) == []
    assert list(transports.slow("rc_mlx5+tcp", 2)) == []
    (said,) = transports.slow("tcp", 2)
    assert "2 RDMA devices" in said


def test_a_transport_that_was_not_asked_for_is_warned_of() -> None:
    """Between two processes of one host sockets are slow, unless it was they that were asked for."""
    assert list(transports.fallen_back("tcp", "tcp")) == []
    assert list(transports.fallen_back("shm", "posix+cma")) == []
    assert list(transports.fallen_back("auto", "tcp+sysv")) == []
    for asked in ("shm", "auto"):
        (said,) = transports.fallen_back(asked, "self+tcp")
        assert f"{asked} was asked for" in said


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard error is no terminal here; the items come all the same."""
    assert list(progress.track("abc", "x", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_rows_that_share_no_figure_stand_in_tables_of_their_own() -> None:
    """What was not measured says why beside no empty cells; rows that another joins stay together, in their order."""
    rows: list[dict[str, Any]] = [
        {"pair": "a", "why_not": "no GPU"},
        {"pair": "b", "gb_per_s": 1.0},
        {"pair": "c", "ms": 2.0},
        {"pair": "d", "gb_per_s": 3.0, "ms": 4.0, "limit": 5.0},
        {"pair": "e", "why_not": "no disk"},
    ]
    result = Result("tiers", {}, {}, ("pair",), rows, {}, [], {})
    assert [[row["pair"] for row in part] for part in table.parts(result)] == [["b", "c", "d"], ["a", "e"]]
