"""`kvbench all`: what ran, what was left out and why, and that nothing takes longer than it may."""

import argparse
import importlib
import json
import time
from pathlib import Path

import pytest

from kvbench import all as every
from kvbench.all import Step
from kvbench.cli import COMMANDS, main


def run_steps(steps: list[Step], folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(every, "steps", lambda path, trace, head: iter(steps))
    return main(["all", "--quick", "--out", str(folder), *options])


def test_every_bench_is_in_it() -> None:
    """Those that make something of results are not; each file's name is its own."""
    steps = list(every.steps(Path(), Path("trace"), Path("head")))
    assert {step.argv[0] for step in steps} == COMMANDS.keys() - {"all", "report", "compare"}
    assert len({step.name for step in steps}) == len(steps)
    assert sum(step.limit_s for step in steps) > 60 * every._QUICK_MINUTES, "limits alone keep the time"


@pytest.mark.parametrize("step", [*every.steps(Path(), Path("trace"), Path("head"))], ids=lambda step: step.name)
def test_options_are_those_of_the_benches(step: Step) -> None:
    """A renamed option would leave a bench out."""
    module = importlib.import_module(COMMANDS[step.argv[0]].module)
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    module.add_arguments(parser)
    assert parser.parse_args([*step.argv[1:], *step.quick])


def test_results_and_reasons_come_into_one_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bench that cannot be run here is left out with its own words; that is no failure."""
    steps = [
        Step("keys", ("keys", "--rounds", "3"), ("--tokens", "640")),
        Step("nvme", ("nvme",), ("--rounds", "0")),
        Step("replay", ("replay",), ()),
    ]
    assert run_steps(steps, tmp_path, monkeypatch) == 0
    assert json.loads((tmp_path / "keys.json").read_text())["settings"]["tokens"] == 640
    page = (tmp_path / "report.html").read_text()
    assert 'id="keys"' in page
    assert "nvme: kvbench: --rounds must be positive" in page
    assert "replay: needs --trace FILE" in page
    said = capsys.readouterr().out
    assert "vs_blake2b" in said
    assert str(tmp_path / "report.html") in said


def test_what_breaks_is_told_from_what_cannot_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1; the others' results are kept, and an older result of its own is not taken for one of this run."""
    (tmp_path / "no.json").write_text("an older run's")
    no_memory_has_these = str(10**15)
    steps = [Step("no", ("keys", "--tokens", no_memory_has_these), ()), Step("local", ("local",), ("--rounds", "0"))]
    assert run_steps(steps, tmp_path, monkeypatch) == 1
    assert not (tmp_path / "no.json").exists()
    assert "broke with exit code 1" in (tmp_path / "report.html").read_text()


def test_json_is_one_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the page, the file of each bench that ran, and why another did not."""
    steps = [Step("keys", ("keys", "--tokens", "640"), ("--rounds", "2")), Step("replay", ("replay",), ())]
    assert run_steps(steps, tmp_path, monkeypatch, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["page"] == str(tmp_path / "report.html")
    ran, left_out = told["benches"]
    assert (ran["name"], ran["file"], ran["why_not"]) == ("keys", str(tmp_path / "keys.json"), "")
    assert (left_out["name"], left_out["file"], left_out["why_not"]) == ("replay", None, "needs --trace FILE")
    assert ran["s"] > 0
    assert not ran["broken"]


def test_a_bench_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by an interrupt, which it follows; the next one still runs."""
    slow = Step("match", ("match", "--rounds", "100000", "--tokens", "64"), ("--blocks", "15"), limit_s=4.0)
    began = time.monotonic()
    assert run_steps([slow, Step("keys", ("keys", "--tokens", "640"), ("--rounds", "3"))], tmp_path, monkeypatch) == 0
    assert time.monotonic() - began < slow.limit_s + every._GIVEN_UP_S, "it had to be killed"
    assert "match: did not end within 4 s" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "keys.json").is_file()


def test_what_does_not_fit_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--minutes` in all."""
    steps = [Step(name, ("keys",), ()) for name in ("a", "b")]
    assert run_steps(steps, tmp_path, monkeypatch, "--minutes", "0.0001") == 0
    assert (tmp_path / "report.html").read_text().count("no time left") == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "keys,nothing"], "known are"),
        (["--minutes", "0"], "--minutes must be positive"),
        (["--minutes", "inf"], "--minutes must be positive"),
        (["--trace", "/nowhere/at/all"], "No such file"),
        (["--quick", "--trace", "/nowhere/at/all"], "No such file"),
        (["--out", "new/report.html"], "--out new/report.html: a directory is needed"),
    ],
)
def test_what_cannot_be_asked_for(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused before anything runs."""
    assert main(["all", "--out", str(tmp_path), *options]) == 2
    assert said in capsys.readouterr().err
