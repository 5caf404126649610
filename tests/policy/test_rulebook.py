"""RuleBook: whose word counts, and for which namespace."""

from typing import Any

import pytest

from kvstore.errors import ConfigError, InvalidInput
from kvstore.policy.rulebook import PATTERN_CHARACTERS_MAX, RuleBook, check_asked
from kvstore.policy.rules import DEFAULT_RULES

NAMESPACE = bytes(range(16))


def book(file: dict[str, dict[str, Any]] | None = None, **patterns: dict[str, Any]) -> RuleBook:
    made = RuleBook(DEFAULT_RULES, file or {})
    made.set(patterns)
    return made


def copies(made: RuleBook, model: str = "llama-3-8b", **asked: Any) -> int:
    return made.rules(NAMESPACE, model, asked).copies


def test_each_source_lies_over_the_one_before() -> None:
    """The default, the node's file, the client, the operator."""
    file = {"llama*": {"copies": 2}}
    assert copies(book()) == 1
    assert copies(book(file)) == 2
    assert copies(book(file), copies=3) == 3
    assert copies(book(file, **{"llama*": {"copies": 4}}), copies=3) == 4


def test_what_a_source_does_not_name_it_leaves() -> None:
    """Fields of all of them come together."""
    made = book({"*": {"ttl_ms_max": 70}}, **{"*": {"copies": 4}})
    fields = made.rules(NAMESPACE, "llama", {"probe_extends": True}).to_fields()
    assert fields == {**DEFAULT_RULES.to_fields(), "ttl_ms_max": 70, "copies": 4, "probe_extends": True}


@pytest.mark.parametrize(
    ("model", "expected"), [("llama-3-8b", 4), ("llama-3-70b", 3), ("llama-2", 2), ("qwen", 5), ("LLAMA-2", 5)]
)
def test_the_closest_pattern_counts_alone(model: str, expected: int) -> None:
    """The model itself, then the glob with the most letters; nothing is taken from the others."""
    patterns = {"*": 5, "llama-*": 2, "llama-3-*": 3, "llama-3-8b": 4}
    made = RuleBook(DEFAULT_RULES, {pattern: {"copies": count} for pattern, count in patterns.items()})
    assert copies(made, model) == expected


def test_an_id_is_closest_of_all() -> None:
    """One tenant's namespace can be meant, whatever its model is called."""
    made = book(**{"llama": {"copies": 2}, NAMESPACE.hex(): {"copies": 3}})
    assert copies(made, "llama") == 3
    assert made.rules(bytes(16), "llama", {}).copies == 2


def test_what_is_set_replaces_what_was_set() -> None:
    """Patterns that are not there any more say nothing."""
    made = book(a={"copies": 2})
    made.set({"b": {"copies": 3}})
    assert (copies(made, "a"), copies(made, "b")) == (1, 3)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"*": {"copys": 2}}, r"rules of '\*': unknown rule 'copys': did you mean 'copies'"),
        ({"": {}}, "a pattern has 1 to"),
        ({"x" * (PATTERN_CHARACTERS_MAX + 1): {}}, "a pattern has 1 to"),
        ({"llama": {"ttl_ms_min": 100}}, "no time is from"),  # the file's ttl_ms_max is below
    ],
)
def test_rules_that_cannot_be_change_nothing(patterns: dict[str, dict[str, Any]], expected: str) -> None:
    """Also those that cannot be together with the file's."""
    made = book({"*": {"ttl_ms_max": 70}}, llama={"copies": 2})
    with pytest.raises(InvalidInput, match=expected):
        made.set(patterns)
    assert copies(made, "llama") == 2


def test_a_file_that_cannot_be_is_a_configuration_error() -> None:
    """A node does not start with it."""
    with pytest.raises(ConfigError, match=r"namespaces: rules of 'llama': unknown rule"):
        RuleBook(DEFAULT_RULES, {"llama": {"tll_ms": 1}})


def test_a_client_sets_no_bounds() -> None:
    """They are there to bound it."""
    check_asked({"ttl_ms": 5, "copies": 2}, DEFAULT_RULES)
    with pytest.raises(InvalidInput, match="ttl_ms_max: the operator sets the bounds"):
        check_asked({"ttl_ms_max": 5}, DEFAULT_RULES)
