"""`kvbench restart`, small: every block is found again, and nothing is left behind."""

import argparse
import json
from pathlib import Path

import pytest

from kvbench import restart
from kvstore.errors import KVStoreError


def arguments(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    restart.add_arguments(parser)
    return parser.parse_args(options)


def test_a_small_run(tmp_path: Path) -> None:
    """The median stands at the top level, device and node among the measurements."""
    fields = json.loads(restart.run(arguments("--slots", "300", "--rounds", "3", "--path", str(tmp_path))).to_json())
    assert 0 < fields["open_least_s"] <= fields["open_s"]
    counts = {row["what"]: row["open_s"]["count"] for row in fields["measurements"]}
    assert counts == {"device": 3, "node": 3, "enabling": 3}
    assert fields["stall_ms"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [("--slots", "0"), ("--granules", "0"), ("--rounds", "0")])
def test_senseless_sizes_are_refused(bad: tuple[str, str]) -> None:
    """With an error that the command line prints in one line."""
    with pytest.raises(KVStoreError, match="at least"):
        restart.run(arguments(*bad))
