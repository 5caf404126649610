"""What a testbed would be made of, without making it."""

import pytest

from kvbench.testbed_options import weights
from kvbench.topology import (
    COMPUTE,
    CONTROL,
    STORAGE,
    Rates,
    Topology,
    cluster,
    engine_hosts,
    namespace,
    pair,
    steps,
)
from kvstore.errors import InvalidInput


def snic_mbits(topology: Topology) -> list[int]:
    return [topology.host(name).nic(STORAGE).mbit for name in engine_hosts(2, 3)]


def test_weights_are_of_engine_nodes_in_their_order() -> None:
    """Prefill nodes first, the last weight holds for the rest; the storage node is not shaped unless asked."""
    made = cluster(2, 3, Rates(snic_mbit=100, weights=weights("1:2:3")))
    assert snic_mbits(made) == [100, 200, 300, 300, 300]
    assert made.host("storage").nic(STORAGE).mbit == 0
    assert cluster(1, 0, Rates(1, storage_mbit=7)).host("storage").nic(STORAGE).mbit == 7


def test_addresses_and_devices_do_not_collide() -> None:
    """Over all networks, also for many hosts; device names fit into what the kernel takes."""
    nics = [nic for host in cluster(9, 90, Rates(1)).hosts for nic in host.nics]
    for values in ([nic.address for nic in nics], [nic.mac for nic in nics], [nic.port for nic in nics]):
        assert len(set(values)) == len(values)
    assert max(len(nic.port) for nic in nics) <= 15


def test_only_engine_nodes_have_a_compute_network() -> None:
    """What is relayed can reach a prefill node, and the storage node over nothing but its SNIC."""
    made = cluster(1, 1, Rates(1))
    assert {host.name: [nic.network for nic in host.nics] for host in made.hosts} == {
        "control": [CONTROL],
        "storage": [CONTROL, STORAGE],
        "prefill-1": [CONTROL, STORAGE, COMPUTE],
        "decode-1": [CONTROL, STORAGE, COMPUTE],
    }


def test_both_ends_of_a_nic_are_shaped() -> None:
    """The host's end for what it sends, the switch's for what it is sent; an unshaped NIC has no step at all."""
    shaped = [step for step in steps("x", cluster(1, 0, Rates(80))) if step.program == "tc"]
    assert [step.namespace for step in shaped] == ["kvt-x-prefill-1", "kvt-x-switch"]
    assert [" ".join(step.lines).split("root ")[1] for step in shaped] == [
        "tbf rate 80000kbit burst 131072 latency 50ms"
    ] * 2
    assert not [step for step in steps("x", pair()) if step.program == "tc"]


def test_every_namespace_bears_the_testbed_s_name() -> None:
    """So two testbeds never meet, and one is found again by its name."""
    for step in steps("x", cluster(1, 1, Rates(1))):
        assert step.namespace.startswith("kvt-x-") or all("kvt-x-" in line for line in step.lines)


@pytest.mark.parametrize("name", ["", "a-b", "A", "a/b", "x" * 17])
def test_names_that_cannot_be_told_apart_are_refused(name: str) -> None:
    """A dash would make one testbed's hosts another's."""
    with pytest.raises(InvalidInput):
        namespace(name, "storage")


@pytest.mark.parametrize(
    ("prefills", "helpers", "rates"),
    [(0, 1, Rates(1)), (1, -1, Rates(1)), (1, 1, Rates(0)), (1, 1, Rates(1, (0,))), (1, 400, Rates(1))],
)
def test_what_cannot_be_made_is_refused(prefills: int, helpers: int, rates: Rates) -> None:
    """Before anything is made."""
    with pytest.raises(InvalidInput):
        cluster(prefills, helpers, rates)


def test_an_unknown_host_is_named_with_those_there_are() -> None:
    """A wrong name in a command is no crash."""
    with pytest.raises(InvalidInput, match="left, right"):
        pair().host("middle")
