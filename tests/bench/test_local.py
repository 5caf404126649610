"""`kvbench local`, small: its figures mean nothing here, its shape and its own checks do."""

import json

import pytest

from kvbench.cli import main


def test_every_path_is_measured_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    """Both ways, with and without checksums, each beside memcpy; what was loaded was compared by the bench itself."""
    assert main(["local", "--bytes", "4MiB", "--sizes", "1MiB", "--rounds", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ways = {"vs_memcpy", "vs_memcpy_store", "vs_memcpy_load"}
    assert set(found["ratios"]) == ways | {name.replace("memcpy", "memcpy_checked") for name in ways}
    assert found["ratios"]["vs_memcpy"] == min(found["ratios"][f"vs_memcpy_{way}"] for way in ("store", "load"))
    assert all(point["gb_per_s"]["median"] > 0 for point in found["measurements"])
    assert len(found["measurements"]) == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sizes", "5000"], "multiples of 4KiB"),
        (["--sizes", "0"], "multiples of 4KiB"),
        (["--bytes", "1MiB"], "one block of"),
        (["--rounds", "0"], "--rounds must be positive"),
        (["--model", "llama-2-70b", "--bytes", "16MiB"], "20971520"),
    ],
)
def test_sizes_that_cannot_be_measured(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They are refused before a server is started."""
    assert main(["local", *options]) == 2
    assert said in capsys.readouterr().err
