"""Namespace rules as fields: what they say survives, what cannot be meant is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import InvalidInput
from kvstore.policy.rules import COPIES_MAX, DEFAULT_RULES, TTL_MS_MAX, Compression, NamespaceRules
from kvstore.policy.ttl import TtlKind, TtlRule
from kvstore.rpc.rules import rules_message, rules_of

HOUR_MS = 3_600_000
bounds = st.tuples(st.integers(0, TTL_MS_MAX), st.integers(0, TTL_MS_MAX)).map(sorted)
ttls = st.tuples(st.sampled_from(TtlKind), st.integers(1, TTL_MS_MAX), bounds).map(
    lambda drawn: TtlRule(drawn[0], *(ms * 1_000_000 for ms in (drawn[1], *drawn[2])))
)
rules = st.builds(NamespaceRules, ttls, st.booleans(), st.integers(1, COPIES_MAX), st.sampled_from(Compression))


@given(rules)
def test_rules_survive_as_fields(given_rules: NamespaceRules) -> None:
    """As JSON, and on the wire."""
    fields = given_rules.to_fields()
    assert NamespaceRules.from_fields(json.loads(json.dumps(fields))) == given_rules
    assert rules_of(rules_message(fields)) == fields


@given(rules, rules)
def test_all_fields_together_change_everything(before: NamespaceRules, after: NamespaceRules) -> None:
    """Nothing of what was before is left."""
    assert before.changed(after.to_fields()) == after


def test_what_is_not_named_stays() -> None:
    """A message that sets one field changes one."""
    rules = NamespaceRules.from_fields({"ttl_ms": HOUR_MS, "copies": 2})
    changed = rules.changed(rules_of(rules_message({"copies": 3})))
    assert changed.to_fields() == {**rules.to_fields(), "copies": 3}
    assert rules.changed({}) == rules


def test_a_field_may_be_changed_back_to_nothing() -> None:
    """Zero and false are values, also on the wire."""
    rules = NamespaceRules.from_fields({"ttl_ms_max": 5, "probe_extends": True})
    changes = {"ttl_ms_max": 0, "probe_extends": False}
    assert rules.changed(rules_of(rules_message(changes))) == DEFAULT_RULES


def test_the_default() -> None:
    """Sliding, half an hour, one copy, as it came."""
    assert NamespaceRules(TtlRule(TtlKind.SLIDING, 30 * 60 * 10**9)) == DEFAULT_RULES


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"ttl": 1}, r"unknown rule 'ttl'"),
        ({"tll_ms": 1}, r"unknown rule 'tll_ms': did you mean 'ttl_ms'\?"),
        ({"ttl_ms": "1h"}, "ttl_ms: int is needed, not '1h'"),
        ({"ttl_ms": True}, "ttl_ms: int is needed, not True"),
        ({"ttl_ms": 0}, "a positive time is needed"),
        ({"ttl_ms": -1}, "-1 is not from 0"),
        ({"ttl_ms": 2**64}, "is not from 0"),
        ({"ttl_ms_min": 2, "ttl_ms_max": 1}, "no time is from"),
        ({"ttl_kind": "slipping"}, "ttl_kind: 'slipping' is none of sliding, fixed"),
        ({"compression": "lz4"}, "compression: 'lz4' is none of off, zstd, shuffle"),
        ({"copies": 0}, "copies: 0 is not from 1"),
        ({"copies": COPIES_MAX + 1}, "copies: 17 is not from 1 to 16"),
        ({"probe_extends": 1}, "probe_extends: bool is needed, not 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, Any], expected: str) -> None:
    """The text names the field, and what it may be."""
    with pytest.raises(InvalidInput, match=expected):
        NamespaceRules.from_fields(fields)
