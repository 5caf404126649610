"""`kvbench match`, small: it runs its processes, finds every block, and leaves nothing behind."""

import argparse
import json
import tempfile
from pathlib import Path

import pytest

from kvbench import match
from kvstore.errors import KVStoreError


def arguments(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    match.add_arguments(parser)
    return parser.parse_args(options)


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies stand at the top level, the parts among the measurements, and the temporary index is gone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = match.run(arguments("--blocks", "300", "--tokens", "6400", "--rounds", "5"))
    fields = json.loads(result.to_json())
    assert 0 < fields["p50_ms"] <= fields["p99_ms"]
    parts = {row["part"]: row["ms"]["p50"] for row in fields["measurements"]}
    assert parts["client.match"] == fields["p50_ms"]
    assert 0 < parts["index look-up"] < parts["client.match"]
    assert all(fields[f"{kind}_bytes_per_block"] > 0 for kind in ("memory", "disk"))
    assert list(tmp_path.glob("kvbench-*")) == []


@pytest.mark.parametrize("bad", [("--tokens", "63"), ("--blocks", "0"), ("--rounds", "0")])
def test_senseless_sizes_are_refused(bad: tuple[str, str]) -> None:
    """With an error that the command line prints in one line."""
    with pytest.raises(KVStoreError, match="at least"):
        match.run(arguments(*bad))
