"""What `kvbench dualpath` makes of its rounds."""

import argparse
from dataclasses import replace

import pytest

from kvbench import dualpath
from kvbench.bed_cluster import DUAL, SINGLE
from kvbench.bed_engine import LAYOUT
from kvbench.bed_faults import Fault
from kvbench.cli import main
from kvbench.dualpath_rounds import Measured, Plan, Round
from kvbench.testbed import Counters
from kvbench.topology import COMPUTE, STORAGE

BYTES = 4 * LAYOUT.block_bytes


@pytest.fixture
def plan() -> Plan:
    parser = argparse.ArgumentParser()
    dualpath.add_arguments(parser)
    return dualpath._plan(parser.parse_args(["--testbed", "--bytes", str(BYTES), "--kill-helper"]))


def measured(seconds: float, own_bytes: int, helper_bytes: int) -> Measured:
    received = {"prefill-1": own_bytes, "decode-1": helper_bytes}
    nics = {
        (host, network): Counters(count * (network == STORAGE), count * (network == COMPUTE))
        for host, count in received.items()
        for network in (STORAGE, COMPUTE)
    }
    return Measured(seconds, BYTES, seconds / 8, 0.1, {"direct": own_bytes}, {}, nics, None)


def rounds() -> list[Round]:
    """Each NIC carries BYTES in 10 s; the three rounds differ in how long the loads took."""
    rates = {"prefill-1": BYTES / 10, "decode-1": BYTES / 10}
    return [
        Round(
            {"prefill-1": BYTES / 10},
            rates,
            {SINGLE.name: measured(single_s, BYTES, 0), DUAL.name: measured(dual_s, BYTES * 3 // 4, BYTES // 4)},
        )
        for single_s, dual_s in ((12.5, 6.25), (10.0, 8.0), (20.0, 5.0))
    ]


def test_ratios_are_medians_of_ratios_within_the_rounds(plan: Plan) -> None:
    """Each way beside what its own NICs carry; the helped one also beside the other, and the best time left."""
    assert dualpath.ratios(plan, rounds()) == {
        "single_of_limit": pytest.approx(0.8),
        "single_first_group_share": pytest.approx(1 / 8),
        "single_snic_max_vs_mean": pytest.approx(2.0),
        "of_limit": pytest.approx(0.8),
        "first_group_share": pytest.approx(1 / 8),
        "snic_max_vs_mean": pytest.approx(1.5),
        "of_optimum": pytest.approx(7.5 / 6.25),
        "dual_vs_single": pytest.approx(2.0),
    }
    assert "of_optimum" not in dualpath.ratios(replace(plan, fault=None), rounds())


def test_overhead_is_the_median_of_the_pairs_with_its_interval() -> None:
    """Of three pairs the interval is all of them, and holds the median three times out of four."""
    pairs = rounds()
    pairs[0] = replace(pairs[0], loads=pairs[0].loads | {DUAL.name: replace(pairs[0].loads[DUAL.name], cpu_s=0.11)})
    assert dualpath.overhead(pairs) == {
        "overhead_seconds": pytest.approx(0.5),
        "overhead_seconds_low": pytest.approx(0.25),
        "overhead_seconds_high": pytest.approx(0.8),
        "overhead_cpu": pytest.approx(1.0),
        "overhead_cpu_low": pytest.approx(1.0),
        "overhead_cpu_high": pytest.approx(1.1),
        "overhead_level": pytest.approx(0.75),
    }


def test_overhead_is_measured_without_a_helper() -> None:
    """Whatever --helpers says: there must be nothing that DualPath could use."""
    parser = argparse.ArgumentParser()
    dualpath.add_arguments(parser)
    plan = dualpath._plan(parser.parse_args(["--testbed", "--overhead"]))
    assert (plan.helpers, len(plan.readers)) == ((), 1)


def test_handoffs_are_compared_over_all_rounds_together(plan: Plan) -> None:
    """A percentile of one round alone would say little."""
    with_handoffs = []
    for number, each in enumerate(rounds()):
        load = replace(each.loads[DUAL.name], handoffs_alone_s=[0.010], handoffs_beside_s=[0.012, 0.015 + number / 1e6])
        with_handoffs.append(replace(each, loads=each.loads | {DUAL.name: load}))
    assert dualpath.ratios(plan, with_handoffs)["handoff_p99_vs_alone"] == pytest.approx(1.5, rel=0.01)
    row = next(row for row in dualpath.rows(plan, with_handoffs) if row.get("handoffs"))
    assert (row["path"], row["handoffs"], row["handoff_alone_p50_ms"]) == ("dual path", 6, pytest.approx(10))


def test_rows_name_every_way_and_every_nic(plan: Plan) -> None:
    """Both limits, both ways, and four NICs of each."""
    found = list(dualpath.rows(plan, rounds()))
    assert [row["path"] for row in found[:4]] == [
        "sockets, readers' NICs",
        "sockets, all NICs",
        "single path",
        "dual path",
    ]
    assert found[1]["gb_per_s"]["median"] == pytest.approx(2 * found[0]["gb_per_s"]["median"])
    assert found[3]["seconds"]["median"] == 6.25
    nics = {(row["path"], row["nic"]): row["received_bytes"] for row in found[4:]}
    assert len(nics) == 8
    assert nics["dual path", "decode-1 snic0"] == BYTES // 4


def test_histories_are_shared_out(plan: Plan) -> None:
    """--bytes is of all loads together; the deadline grows with them."""
    assert (plan.bytes, plan.blocks, plan.seeds, plan.fault) == (BYTES, 4, ("1",), Fault("kill", at=0.5))
    assert plan.deadline_s > 5 * BYTES * 8 / 500e6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--bytes", "1MiB"], "--bytes of"),
        (["--rounds", "0"], "--rounds"),
        (["--helpers", "0", "--kill-helper"], "need a helper"),
        (["--overhead", "--kill-helper"], "need a helper"),
        (["--helpers", "0", "--background-load", "50%"], "need a helper"),
        (["--kill-helper", "--background-load", "50%"], "taken for it"),
        (["--handoffs", "1MiB"], "whole blocks"),
        (["--helpers", "0", "--handoffs", "8MiB"], "need a helper"),
        (["--snic-mbit", "0"], "positive"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before any host is made."""
    assert main(["dualpath", "--testbed", *options]) == 2
    assert said in capsys.readouterr().err
