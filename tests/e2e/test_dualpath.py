"""`kvbench dualpath`, small: its figures mean little here; that bytes are right and keep to their NICs does not."""

import json
import os
from typing import Any

import pytest

from kvbench import dualpath_rounds, testbed
from kvbench.cli import main

pytestmark = [
    pytest.mark.ucx,
    pytest.mark.netns,
    pytest.mark.skipif(bool(testbed.why_not()), reason=testbed.why_not()),
]

BYTES = 64 * 2**20
BLOCKS = ["--bytes", str(BYTES), "--rounds", "1", "--limit-s", "0.5"]


def measured(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["dualpath", "--testbed", *BLOCKS, *options, "--json"]) == 0
    # Others may have testbeds of their own.
    assert not [name for name in testbed.names() if name.startswith(f"p{os.getpid()}n")]
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def passed(found: dict[str, Any], path: str) -> dict[str, dict[str, int]]:
    """The rows of the NICs."""
    return {row["nic"]: row for row in found["measurements"] if row["path"] == path and "nic" in row}


def test_bytes_keep_to_the_nics_of_their_path(capsys: pytest.CaptureFixture[str]) -> None:
    """UCX is told the device: on the single path no payload passes over another NIC, and the rate is the NIC's own; on
    the dual path what the helper's storage NIC receives goes on over both compute NICs."""
    found = measured(capsys, "--snic-mbit", "400")
    nics = passed(found, "single path")
    assert nics["prefill-1 snic0"]["received_bytes"] > BYTES
    for other in ("prefill-1 cnic0", "decode-1 snic0", "decode-1 cnic0"):
        assert nics[other]["received_bytes"] + nics[other]["sent_bytes"] < BYTES / 100
    assert 0.5 < found["ratios"]["single_of_limit"] < 1.2
    assert 1 / 16 < found["ratios"]["single_first_group_share"] < 1 / 2
    nics = passed(found, "dual path")
    relayed = nics["decode-1 snic0"]["received_bytes"]
    assert BYTES / 5 < relayed < BYTES * 4 / 5
    assert nics["prefill-1 snic0"]["received_bytes"] + relayed == pytest.approx(BYTES, rel=0.1)
    assert nics["decode-1 cnic0"]["sent_bytes"] == pytest.approx(relayed, rel=0.1)
    assert nics["prefill-1 cnic0"]["received_bytes"] == pytest.approx(relayed, rel=0.1)
    assert found["ratios"]["dual_vs_single"] > 1.2


def test_handoffs_go_beside_a_load(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their bytes are compared by the engine that receives them; there are some before each load and some beside it."""
    monkeypatch.setattr(dualpath_rounds, "_ENGINE_DRAM_BYTES", 4 * BYTES)  # filled with handoffs before
    monkeypatch.setattr(dualpath_rounds, "_HANDOFFS_ALONE", 20)
    found = measured(capsys, "--snic-mbit", "200", "--cnic-mbit", "1600", "--handoffs", "8MiB")
    assert found["ratios"]["handoff_p99_vs_alone"] > 0
    assert all(row["handoffs"] > 1 for row in found["measurements"] if "seconds" in row)


@pytest.mark.parametrize("fault", ["--throttle-helper=10%@30%", "--kill-helper", "--stop-helper", "--link-down"])
def test_a_fault_of_a_helper_leaves_every_byte_right(capsys: pytest.CaptureFixture[str], fault: str) -> None:
    """It strikes in the middle of the load, the load ends, nothing is missing, and processes and hosts are gone."""
    found = measured(capsys, "--snic-mbit", "200", fault)
    assert found["settings"]["fault"]["kind"] in fault
    (dual,) = (row for row in found["measurements"] if row["path"] == "dual path" and "seconds" in row)
    assert 0 < dual["fault_s"] < dual["seconds"]["median"]
    assert dual["missing_blocks"] == 0
    assert found["ratios"]["of_optimum"] > 0.2


def test_concurrent_loads_over_two_readers(capsys: pytest.CaptureFixture[str]) -> None:
    """All of them are whole, though each has to wait behind the others; each reader has its part, over its own storage
    NIC, while a helper's is busy with something else; and every storage NIC is used."""
    options = ("--prefills", "2", "--concurrent", "16", "--bytes", "512MiB", "--background-load", "50%")
    found = measured(capsys, "--snic-mbit", "800", "--uneven", "1:1:2", *options)
    nics = {name: row["received_bytes"] for name, row in passed(found, "single path").items()}
    assert nics["prefill-1 snic0"] == pytest.approx(nics["prefill-2 snic0"], rel=0.1)
    assert nics["decode-1 snic0"] > BYTES
    assert found["settings"]["snic_mbit"] == {"prefill-1": 800, "prefill-2": 800, "decode-1": 1600}
    # A quarter to a third of all on quiet cores; where they are busy with others, paths are given up that would come.
    assert passed(found, "dual path")["decode-1 cnic0"]["sent_bytes"] > BYTES / 4
