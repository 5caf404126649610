"""One verdict per block, of what index and nodes say."""

from collections.abc import Sequence

import pytest

from kvstore.control.explain import DEPARTURES, NEAR_MAX, Asked, Explained, Hint, near, verdicts
from kvstore.pb import node_pb2, types_pb2

HERE = node_pb2.KeyState(tiers=[types_pb2.TIER_DRAM])
NOWHERE = node_pb2.KeyState()
KNOWN = Hint("a", True, 0, 1)


def verdict(
    *states: node_pb2.KeyState, hints: Sequence[Hint] = (), matched: int = 0, unreached: Sequence[str] = ()
) -> Explained:
    """Of one block in one shard, by what nodes a, b, … say."""
    said = {chr(ord("a") + i): [state] for i, state in enumerate(states)}
    (found,) = verdicts(Asked(1, 1, matched, [hints], said, unreached))
    return found


@pytest.mark.parametrize(("reason", "told"), DEPARTURES.items())
def test_it_went(reason: str, told: tuple[str, str]) -> None:
    """Each reason has a word for programs and words for people; what happened last counts."""
    first = node_pb2.KeyState(gone="expired" if reason != "expired" else "refused", gone_ms_ago=9000)
    last = node_pb2.KeyState(gone=reason, gone_ms_ago=3000)
    assert verdict(first, last) == (told[0], f"{told[1]}; 3 s ago on b")


def test_a_reason_that_is_new() -> None:
    """A node of a later version is passed on in its own words."""
    assert verdict(node_pb2.KeyState(gone="stolen")) == ("gone", "gone: stolen; 0 s ago on a")


def test_it_is_there() -> None:
    """With the places; also when a client did not want it."""
    assert verdict(HERE, NOWHERE, hints=[KNOWN], matched=1) == ("here", "on a (DRAM)")
    declined = node_pb2.KeyState(tiers=[types_pb2.TIER_DRAM], declined=True, declined_ms_ago=2000)
    assert verdict(NOWHERE, declined, hints=[KNOWN], matched=1) == (
        "not_worth_loading",
        "on b (DRAM); 2 s ago a client of b found it sooner computed than loaded",
    )


def test_it_is_there_and_not_told() -> None:
    """The control plane knows only another split of it."""
    assert verdict(HERE, hints=[Hint("a", True, 0, 2)]).verdict == "unpublished"


def test_it_is_being_written() -> None:
    """Before anything that was."""
    assert verdict(node_pb2.KeyState(being_written=True, gone="expired")).verdict == "being_written"


def test_its_node_is_down() -> None:
    """One that is silent, one that is gone, and one that is said to be alive but does not answer."""
    for hints, unreached, words in (
        ([Hint("b", False, 0, 1)], [], "on b,"),
        ([Hint("", False, 0, 1)], [], "a node that is gone"),
        ([Hint("b", True, 0, 1)], ["b"], "on b,"),
    ):
        found = verdict(NOWHERE, hints=hints, unreached=unreached)
        assert found.verdict == "node_down"
        assert words in found.text


def test_nobody_knows() -> None:
    """Never stored; or not known, while somebody does not answer."""
    assert verdict(NOWHERE).verdict == "never_stored"
    found = verdict(NOWHERE, unreached=["b"])
    assert found.verdict == "unknown"
    assert "b did not answer" in found.text


def test_it_is_split_otherwise() -> None:
    """Stored by two ranks, asked for in one."""
    assert verdict(NOWHERE, hints=[Hint("a", True, 1, 2)]) == ("other_split", "stored in 2 shards, asked for in 1")


def test_a_gap() -> None:
    """What lies behind it is there, and no match gets there."""
    gone = node_pb2.KeyState(gone="evicted_pressure", gone_ms_ago=1000)
    found = verdicts(Asked(3, 1, 1, [[KNOWN], [], [KNOWN]], {"a": [HERE, gone, HERE]}, []))
    assert [each.verdict for each in found] == ["here", "evicted", "behind_gap"]
    assert found[2].text == "on a (DRAM), but no match gets past block 1"


def test_a_shard_that_is_missing() -> None:
    """The block is not whole, and the rank is named."""
    states = [HERE, HERE, HERE, node_pb2.KeyState(gone="expired", gone_ms_ago=1000)]
    hints = [[Hint("a", True, rank, 2) for rank in (0, 1)], [Hint("a", True, 0, 2)]]
    found = verdicts(Asked(2, 2, 1, hints, {"a": states}, []))
    assert found == [("here", "on a (DRAM)"), ("expired", "shard 1 of 2: its time was over; 1 s ago on a")]


def test_namespaces_that_are_near() -> None:
    """What differs least comes first; the same one of several nodes comes once, and so many do."""

    def known(number: int, **fields: str) -> node_pb2.KnownNamespace:
        named = types_pb2.Namespace(**{"tenant": "t", "model": "m", **fields})
        return node_pb2.KnownNamespace(namespace_id=bytes([number]) * 16, namespace=named, block_tokens=64)

    far, close = known(1, model="x", tenant="u"), known(2, adapter="lora")
    many = [known(number, model=f"m{number}") for number in range(NEAR_MAX + 1)]
    assert len(near(types_pb2.Namespace(), {"a": many})) == NEAR_MAX
    found = near(types_pb2.Namespace(tenant="t", model="m"), {"b": [far, close], "a": [close]})
    assert [(each.namespace_id[0], nodes, differs) for each, nodes, differs in found] == [
        (2, ["a", "b"], ["adapter: 'lora' there, '' asked"]),
        (1, ["b"], ["tenant: 'u' there, 't' asked", "model: 'x' there, 'm' asked"]),
    ]
