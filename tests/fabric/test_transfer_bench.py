"""`kvbench transfer`: what it measures, and how ratios come about."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

from kvbench import transfer, transports
from kvbench.cli import main
from kvbench.pair import Point
from kvbench.transfer import CHECKED, FABRIC, LOAD, LOAD_CHECKED, Contestant, alternate, ratios
from kvbench.yardsticks import PERFTEST, SOCKET
from kvstore.config import FabricConfig

MIB = 1024 * 1024
AGREED = Point(4 * MIB, 8, 64 * MIB)


def test_contestants_take_turns() -> None:
    """After one warm-up each, the rounds go A B A B."""
    turns: list[str] = []

    def contestant(name: str) -> Contestant:
        def move(point: Point) -> float:
            turns.append(name)
            return float(len(turns))

        return Contestant(name, move)

    seconds = alternate([contestant("A"), contestant("B")], AGREED, 2)
    assert turns == [*"ABABAB"]
    assert seconds == {"A": [3, 5], "B": [4, 6]}


def test_ratio_is_the_median_of_rounds() -> None:
    """A disturbed round does not decide; other points and missing contestants give no ratio."""
    elsewhere = Point(MIB, 8, 64 * MIB)
    measured = {
        AGREED: {FABRIC: [1.0, 1.0, 1.0], SOCKET: [0.9, 0.1, 0.9], PERFTEST: [2.0, 2.0, 9.0]},
        elsewhere: {FABRIC: [1.0], SOCKET: [5.0]},
    }
    assert ratios(measured) == {"vs_ucx_perftest": 2.0, "vs_socket": 0.9}


def test_never_fewer_messages_than_in_flight() -> None:
    """A small total is raised so that every lane has a message."""
    assert Point(MIB, 32, 4 * MIB).moved_bytes == 32 * MIB


@pytest.mark.ucx
@pytest.mark.skipif(find_spec("ucxx") is None, reason="UCXX is in the extras cpu, cu12 and cu13")
@pytest.mark.parametrize(
    ("transport", "loads", "load_ratios"),
    [
        ("tcp", {LOAD, LOAD_CHECKED}, {"load_vs_socket", "load_checked_vs_socket"}),
        ("sockets", {LOAD, LOAD_CHECKED}, {"load_vs_socket", "load_checked_vs_socket"}),
        ("shm", set(), set()),
    ],
)
def test_measures_all_contestants(
    transport: str, loads: set[str], load_ratios: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A small real run has every contestant and every ratio that it can have; nodes do not serve without tcp."""
    arguments = ["--sizes", "4MiB", "--in-flight", "8", "--bytes", "32MiB", "--rounds", "1"]
    assert main(["transfer", "--transport", transport, *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["contestant"] for row in found["measurements"]} == {FABRIC, CHECKED, SOCKET, PERFTEST} | loads
    assert all(row["gb_per_s"]["median"] > 0 for row in found["measurements"])
    assert (found["settings"]["chosen"] == "sockets") == (transport == "sockets")
    assert {*found["ratios"]} == {"vs_ucx_perftest", "vs_socket", "checked_vs_unchecked"} | load_ratios


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--in-flight", "0"]])
def test_nonsense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is started for a point that cannot be measured."""
    assert main(["transfer", *arguments]) == 2
    assert "positive" in capsys.readouterr().err


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contestants that move nothing."""

    @contextmanager
    def contestants(config: FabricConfig, total_bytes: int) -> Iterator[list[Contestant]]:
        yield [Contestant(name, lambda point: 0.1) for name in (FABRIC, SOCKET)]

    monkeypatch.setattr(transfer, "contestants", contestants)


@pytest.mark.usefixtures("instant")
def test_sockets_instead_of_what_was_asked_for_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The transport of the run itself is looked at, not that of the defaults alone."""
    monkeypatch.setattr(transports, "chosen", lambda config: "tcp")
    for asked, warned in (("shm", True), ("tcp", False)):
        assert main(["transfer", "--transport", asked, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert any("shm was asked for" in said for said in found["warnings"]) == warned


@pytest.mark.usefixtures("instant")
@pytest.mark.parametrize(("sizes", "ratios"), [("4MiB", {"vs_socket"}), ("1MiB", set())])
def test_without_ratios_it_says_why(sizes: str, ratios: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    """They are of one point, so that runs can be compared: whoever measures others is told."""
    assert main(["transfer", "--sizes", sizes, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["ratios"]) == ratios
    assert any("no ratios" in said for said in found["warnings"]) == (not ratios)
