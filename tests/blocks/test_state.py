"""The state table: what it allows, and that everything else raises."""

import itertools

import pytest

from kvstore.blocks.state import LEGAL_MOVES, IllegalMove, Outcome, SlotState, Tier, check_move
from kvstore.pb import node_pb2, types_pb2

EVERY_MOVE = list(itertools.product(SlotState, SlotState))


@pytest.mark.parametrize(("old", "new"), EVERY_MOVE)
def test_the_table_is_the_law(old: SlotState, new: SlotState) -> None:
    """A move in the table passes, any other raises and names itself."""
    if (old, new) in LEGAL_MOVES:
        check_move(old, new)
    else:
        with pytest.raises(IllegalMove, match=f"{old.value} → {new.value}"):
            check_move(old, new)


def test_what_the_table_must_not_allow() -> None:
    """Nothing is read before it was reserved, nothing comes back once it is out of reach, nothing stays where it is."""
    assert {new for old, new in LEGAL_MOVES if old is SlotState.FREE} == {SlotState.RESERVED}
    assert {old for old, new in LEGAL_MOVES if new is SlotState.LIVE} == {SlotState.RESERVED}
    assert {new for old, new in LEGAL_MOVES if old is SlotState.RETIRED} == {SlotState.FREE}
    assert all(old is not new for old, new in LEGAL_MOVES)


def test_every_state_leads_back_to_free() -> None:
    """No slot is lost for ever: from every state there is a way to FREE."""
    reaches = {SlotState.FREE}
    for _ in SlotState:
        reaches |= {old for old, new in LEGAL_MOVES if new in reaches}
    assert reaches == set(SlotState)


def test_outcomes_and_tiers_have_the_numbers_of_the_wire() -> None:
    """The code's numbers are those of the messages, name by name."""
    assert {f"OUTCOME_{outcome.name}": outcome.value for outcome in Outcome} == {
        name: number for name, number in node_pb2.Outcome.items() if number
    }
    assert {f"TIER_{tier.name}": tier.value for tier in Tier} == {
        name: number for name, number in types_pb2.Tier.items() if number
    }
