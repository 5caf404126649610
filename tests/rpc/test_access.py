"""Who may call what: the decision, and the table that the documentation shows of it."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kvstore.errors import Forbidden, Unauthenticated
from kvstore.rpc.access import ACCESS, Right, Shown, expect_allowed
from kvstore.rpc.certificates import Role
from kvstore.rpc.tokens import Token

DOCUMENT = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
NOW = datetime.now(UTC)
READER = Token("anna", "", "read", "0" * 64, NOW)
ACME = Token("acme", "acme", "", "1" * 64, NOW)


def remote(*roles: Role, token: Token | str = "", asked: bool = True) -> Shown:
    return Shown(local=False, roles=frozenset(roles), token=token, asked=asked)


def test_a_call_without_a_row_is_refused() -> None:
    """To everybody, whatever he shows."""
    everything = Shown(local=True, roles=frozenset(Role), token="", asked=False)
    with pytest.raises(Forbidden, match="Node/Forgotten: nobody may call it"):
        expect_allowed("Node/Forgotten", everything)


def test_who_lacks_a_token_is_told_how_to_get_one() -> None:
    """One that does not hold is named with its reason."""
    with pytest.raises(Unauthenticated, match=r"needs a tenant's token, and the call shows none.*kvstore tokens add"):
        expect_allowed("Node/Attach", remote(Role.CLIENT))
    with pytest.raises(Unauthenticated, match="the token x has expired"):
        expect_allowed("Admin/Stats", remote(Role.CLIENT, token="the token x has expired"))


def test_who_may_not_is_told_what_he_has_shown() -> None:
    """And what it takes."""
    with pytest.raises(Forbidden, match=r"needs an operator's token; .*of client\.kvstore, and the token anna of an a"):
        expect_allowed("Admin/SetRules", remote(Role.CLIENT, token=READER))
    with pytest.raises(Forbidden, match=r"needs a node's certificate .*; the caller has shown .* of client\.kvstore$"):
        expect_allowed("Node/Pin", remote(Role.CLIENT))


def test_a_token_is_worth_nothing_beside_another_role() -> None:
    """A node that shows an admin's token stays a node."""
    with pytest.raises(Forbidden):
        expect_allowed("Admin/Stats", remote(Role.NODE, token=READER))


def test_a_node_without_a_ticket_is_told_what_it_lacks() -> None:
    """It is registered, or will be, and comes again."""
    with pytest.raises(Unauthenticated, match="the call shows no ticket that holds"):
        expect_allowed("Node/Pin", remote(Role.NODE))
    expect_allowed("Node/Pin", replace(remote(Role.NODE), ticket=True))
    with pytest.raises(Forbidden):
        expect_allowed("Node/Pin", replace(remote(Role.CONTROL), ticket=True))


def test_a_process_that_is_several_things_may_do_what_each_may() -> None:
    """Control plane and node in one."""
    both = remote(Role.CONTROL, Role.NODE)
    expect_allowed("Control/Register", both)
    expect_allowed("Node/SetRules", both)


def test_a_token_binds_to_its_tenant() -> None:
    """Where tokens are asked; else a client may be anybody."""
    assert remote(Role.CLIENT, token=ACME).tenant == "acme"
    assert remote(Role.CLIENT, token=READER).tenant == ""
    assert remote(Role.CLIENT, asked=False).tenant == ""


def test_the_table_in_the_documentation() -> None:
    """Says of each call what the program does."""
    told = {}
    for service, names, needs in re.findall(r"^\| `(\w+)` \| (`.*`) \| ([^|]*) \|$", DOCUMENT, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            told[f"{service}/{name}"] = needs
    assert told == {rpc: ", or ".join(right.value for right in Right if right in row) for rpc, row in ACCESS.items()}
