"""Faults of a helper: how they are asked for, and the best time that they leave."""

import argparse

import pytest

from kvbench import bed_faults
from kvbench.bed_faults import Fault, optimum_s

RATES = {"reader": 60.0, "helper": 40.0}


def parsed(*words: str) -> Fault | None:
    parser = argparse.ArgumentParser()
    bed_faults.add_arguments(parser)
    fault: Fault | None = parser.parse_args(words).fault
    return fault


def test_faults_are_read_from_the_command_line() -> None:
    """Each with the moment that it comes at; half of the bytes where none is said."""
    assert parsed() is None
    assert parsed("--throttle-helper", "5%@40%") == Fault("throttle", at=0.4, share=0.05)
    assert parsed("--kill-helper") == Fault("kill", at=0.5)
    assert parsed("--stop-helper", "25%") == Fault("stop", at=0.25)
    assert parsed("--link-down", "75%") == Fault("link-down", at=0.75)


@pytest.mark.parametrize(
    "words",
    [
        ["--throttle-helper", "5%"],
        ["--throttle-helper", "0%@50%"],
        ["--kill-helper", "half"],
        ["--kill-helper", "100%"],
        ["--kill-helper", "--stop-helper"],
    ],
)
def test_what_is_no_fault_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Two faults at once, too."""
    with pytest.raises(SystemExit):
        parsed(*words)
    assert "error:" in capsys.readouterr().err


def test_optimum_uses_every_nic_until_the_fault_and_the_rest_afterwards() -> None:
    """1000 bytes at 100 a second; half of them slower: the helper keeps a tenth of its 40, or nothing."""
    assert optimum_s(1000, RATES, "helper", None) == pytest.approx(10)
    assert optimum_s(1000, RATES, "helper", Fault("throttle", at=0.5, share=0.1)) == pytest.approx(5 + 500 / 64)
    assert optimum_s(1000, RATES, "helper", Fault("kill", at=0.25)) == pytest.approx(2.5 + 750 / 60)
