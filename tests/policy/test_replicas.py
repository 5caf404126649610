"""Whom to ask for copies: never one who has one, no more than are missing, and apart from each other."""

from hypothesis import given
from hypothesis import strategies as st

from kvstore.policy.replicas import Copyholder, Peer, choose, leads, surplus

NAMES = [f"n{i}" for i in range(8)]
hosts = st.sampled_from(["a", "b", "c"])
holder = st.builds(Copyholder, st.sampled_from(NAMES), hosts, st.integers(1, 1000))
holders = st.lists(holder, max_size=6, unique_by=lambda held: held.node_id)
peers = st.lists(
    st.builds(Peer, st.sampled_from(NAMES), hosts, st.integers(0, 100), st.sampled_from([0, 100, 200])),
    max_size=8,
    unique_by=lambda peer: peer.node_id,
)
OWN = Copyholder("own", "a", 600)


@given(holders, peers, st.integers(1, 6))
def test_no_more_than_are_missing(others: list[Copyholder], candidates: list[Peer], copies: int) -> None:
    """Distinct nodes with room that have none; together with the holders as many as are wanted, or all there are."""
    choice = choose(OWN, others, candidates, copies)
    held = {OWN.node_id, *(other.node_id for other in others)}
    fresh = [name for name in choice.whom if name not in held]
    able = {peer.node_id for peer in candidates if peer.capacity_bytes} - held
    assert len(set(choice.whom)) == len(choice.whom)
    assert set(fresh) <= able
    missing = max(0, copies - len(held))
    assert len(fresh) == min(missing, len(able))
    assert choice.short == missing - len(fresh)


@given(holders, peers, st.integers(1, 6))
def test_only_faded_copies_are_asked_again(others: list[Copyholder], candidates: list[Peer], copies: int) -> None:
    """Those with less than half of the time that the asking holder's has; so two holders never prolong each other. And
    no more of them than are wanted: what is beyond that ends in its time."""
    again = set(choose(OWN, others, candidates, copies).whom) & {other.node_id for other in others}
    longest = sorted(others, key=lambda other: (-other.remaining_ms, other.node_id))[: copies - 1]
    assert again == {other.node_id for other in longest if 2 * other.remaining_ms < OWN.remaining_ms}
    for other in others:
        if other.node_id in again:
            assert OWN.node_id not in choose(other, [OWN], candidates, copies).whom


@given(peers, st.integers(2, 6))
def test_other_machines_come_first(candidates: list[Peer], copies: int) -> None:
    """A machine gets a second copy only when every machine with room has one; among equals the emptiest is taken."""
    chosen = [peer for name in choose(OWN, [], candidates, copies).whom for peer in candidates if peer.node_id == name]
    able = [peer for peer in candidates if peer.capacity_bytes]
    used = {OWN.host}
    for peer in chosen:
        if peer.host in used:
            assert {other.host for other in able} <= used
        used.add(peer.host)
    if chosen:
        rivals = [peer for peer in able if (peer.host == OWN.host) == (chosen[0].host == OWN.host)]
        least = min(peer.used_bytes / peer.capacity_bytes for peer in rivals)
        assert chosen[0].used_bytes / chosen[0].capacity_bytes == least


@given(holders)
def test_exactly_one_holder_repairs(others: list[Copyholder]) -> None:
    """Whoever the holders are, as long as they know the same."""
    everyone = [OWN, *others]
    leading = [
        holder
        for holder in everyone
        if leads(holder.node_id, [other for other in everyone if other.node_id != holder.node_id])
    ]
    assert len(leading) == 1


@given(holders, st.integers(1, 6))
def test_of_too_many_all_are_asked_in_turn(others: list[Copyholder], copies: int) -> None:
    """Each holder once, the one who asks last; as many are to go as there are more than wanted."""
    excess, order = surplus(OWN, others, copies)
    assert excess == max(0, len(others) + 1 - copies)
    assert sorted(order) == sorted([OWN.node_id, *(other.node_id for other in others)])
    assert order[-1] == OWN.node_id
    hosts = [OWN.host, *(other.host for other in others)]
    alone = [hosts.count(other.host) == 1 for name in order for other in others if other.node_id == name]
    assert alone == sorted(alone)
