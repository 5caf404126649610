"""A writer that is killed loses nothing that it was told to be committed. `scripts/crash` does so at length."""

from pathlib import Path

import pytest

from tests.node.storage.crash import crash


@pytest.mark.parametrize("sync", [True, False], ids=["synced", "unsynced"])
def test_a_killed_writer_loses_nothing(tmp_path: Path, sync: bool) -> None:
    """Fifteen times in a row, each time on what the last one left."""
    tally = crash(tmp_path / "device", 15, 7, sync=sync)
    assert tally.kills == 15
    assert tally.commits > 0
