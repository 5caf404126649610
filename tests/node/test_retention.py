"""Retention: the catalog follows the rules that are asked for, and those that operators set."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.errors import InvalidInput
from kvstore.node.retention import Retention
from kvstore.node.storage.manifest import KnownNamespace
from kvstore.pb import types_pb2
from kvstore.policy.rulebook import RuleBook
from kvstore.policy.rules import DEFAULT_RULES
from kvstore.rpc.rules import rules_message, rules_of
from tests.node.small_catalog import SmallCatalog

LAYOUT = Layout.dense(layers=1, kv_heads=1, head_dim=8)
LLAMA = Namespace.of("llama", LAYOUT)
QWEN = Namespace.of("qwen", LAYOUT)


def book(version: int, **patterns: dict[str, Any]) -> types_pb2.RuleBook:
    return types_pb2.RuleBook(
        version=version, rules={pattern: rules_message(fields) for pattern, fields in patterns.items()}
    )


class World:
    def __init__(self, file: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.catalog = SmallCatalog().catalog
        self.retention = Retention(self.catalog, RuleBook(DEFAULT_RULES, file or {}))

    def open(self, namespace: Namespace = LLAMA, **asked: Any) -> int:
        return self.retention.opened(namespace, LAYOUT, asked).copies

    def copies(self, namespace: Namespace = LLAMA) -> int:
        return self.catalog.rules(namespace.id).copies


def test_what_operators_set_holds_at_once_and_later() -> None:
    """For namespaces that are open, and those that clients open afterwards."""
    world = World()
    world.open()
    world.retention.set(book(1, llama={"copies": 3}, qwen={"copies": 4}))
    assert world.copies() == 3
    assert world.open(QWEN) == world.copies(QWEN) == 4
    world.retention.set(book(2))
    assert (world.copies(), world.copies(QWEN)) == (1, 1)


def test_what_operators_set_outlasts_clients_that_ask() -> None:
    """An engine that starts anew does not undo it; what it asked holds again once nothing is set."""
    world = World()
    world.retention.set(book(1, llama={"copies": 3}))
    assert world.open(copies=2) == 3
    world.retention.set(book(2))
    assert world.copies() == 2


def test_clients_of_a_namespace_share_what_they_ask() -> None:
    """One that asks for nothing, or another field, takes nothing back."""
    world = World()
    world.open(copies=2)
    assert world.open(probe_extends=True) == 2
    assert world.open() == 2
    assert world.catalog.rules(LLAMA.id).probe_extends


def test_refused_rules_change_nothing() -> None:
    """Neither the catalog nor what is remembered."""
    world = World()
    world.open(copies=2)
    with pytest.raises(InvalidInput):
        world.open(copies=99)
    assert world.open() == 2


def test_rules_that_do_not_fit_this_nodes_file() -> None:
    """The former ones hold on; the version is noted, so that they are not sent for ever."""
    world = World({"*": {"ttl_ms_max": 1000}})
    world.open()
    world.retention.set(book(1, llama={"copies": 3}))
    world.retention.heard(book(2, llama={"ttl_ms_min": 2000}))
    assert (world.copies(), world.retention.version) == (3, 2)
    with pytest.raises(InvalidInput, match="no time is from"):
        world.retention.set(book(3, llama={"ttl_ms_min": 2000}))


def test_what_is_heard_twice_is_followed_once() -> None:
    """A heartbeat's answer that says nothing new costs nothing."""
    world = World()
    world.open()
    world.retention.heard(book(5, llama={"copies": 3}))
    world.catalog.set_rules(LLAMA.id, DEFAULT_RULES)
    world.retention.heard(book(5, llama={"copies": 3}))
    assert world.copies() == 1


def test_what_holds_is_listed() -> None:
    """What is set, and all fields for each namespace."""
    world = World()
    world.open(probe_extends=True)
    world.retention.set(book(7, llama={"copies": 3}))
    listed = world.retention.listed()
    assert listed.book == book(7, llama={"copies": 3})
    (only,) = listed.namespaces
    assert (only.namespace_id, only.tenant, only.model) == (LLAMA.id, LLAMA.tenant, "llama")
    assert rules_of(only.rules) == {**DEFAULT_RULES.to_fields(), "copies": 3, "probe_extends": True}


def known(world: World, namespace: Namespace = LLAMA) -> KnownNamespace:
    (found,) = [each for each in world.retention.known() if each.namespace_id == namespace.id]
    return found


def test_what_a_device_remembers_is_what_was_opened() -> None:
    """What clients asked for apart from what holds; it is news when either is another."""
    world = World()
    world.retention.set(book(1, llama={"copies": 3}))
    world.open(copies=2)
    remembered = known(world)
    assert (remembered.named, remembered.asked, remembered.rules.copies) == (LLAMA, {"copies": 2}, 3)
    changes = world.retention.changes
    world.open(copies=2)
    assert world.retention.changes == changes
    world.open(copies=4)  # which changes no rule, for the operator's lies over it
    assert world.retention.changes == changes + 1
    assert known(world).asked == {"copies": 4}


def test_an_adopted_namespace_follows_operators_before_any_client_comes() -> None:
    """Until the control plane has said what is set, even if that is nothing, it keeps the rules it was stored under."""
    world = World()
    before = World()
    before.retention.set(book(1, llama={"copies": 3}))
    before.open(copies=2)
    world.retention.adopted(known(before))
    assert world.copies() == 3
    assert world.retention.asked(LLAMA.id) == (LLAMA, {"copies": 2})
    world.retention.heard(types_pb2.RuleBook())
    assert world.copies() == 2
    world.retention.heard(book(2, llama={"copies": 5}))
    assert world.copies() == 5


def test_adoption_changes_nothing_that_is_open() -> None:
    """A device that comes back knows an older state; what clients and operators say now holds."""
    world, before = World(), World()
    before.open(copies=2)
    world.open(copies=4)
    world.retention.adopted(known(before))
    assert world.copies() == 4
    assert world.retention.asked(LLAMA.id) == (LLAMA, {"copies": 4})


def test_an_adopted_namespace_without_a_name_is_known_by_its_rules() -> None:
    """From a device of a former release."""
    world, before = World(), World()
    before.open(copies=2)
    world.retention.adopted(replace(known(before), named=None, asked={}))
    assert world.copies() == 2
    assert world.retention.asked(LLAMA.id) is None
    assert known(world).named is None
    world.open(copies=3)
    assert known(world).named == LLAMA
