"""Whose rules a namespace gets: the sources of `kvstore.policy.rules`, laid over one another.

A node's file and an operator name namespaces by a *pattern*: the model, a glob over the model ("llama-*"), or the
namespace's id in hexadecimal. In each of the two the most specific pattern that matches counts alone: the id, then the
model, then the glob with the most letters of its own.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from kvstore.errors import ConfigError, InvalidInput
from kvstore.policy.rules import BOUNDS, NamespaceRules

PATTERN_CHARACTERS_MAX = 255
Fields = Mapping[str, Any]


def check_patterns(patterns: Mapping[str, Fields], default: NamespaceRules) -> None:
    """Raises InvalidInput when one of them could not be laid over the default rules."""
    for pattern, fields in patterns.items():
        if not 0 < len(pattern) <= PATTERN_CHARACTERS_MAX:
            raise InvalidInput(f"a pattern has 1 to {PATTERN_CHARACTERS_MAX} characters: {pattern[:40]!r}")
        try:
            default.changed(fields)
        except InvalidInput as error:
            raise InvalidInput(f"rules of {pattern!r}: {error}") from None


def check_asked(fields: Fields, default: NamespaceRules) -> None:
    """What a client may ask for: everything but the bounds of its own times. Raises InvalidInput."""
    bounds = sorted(BOUNDS & fields.keys())
    if bounds:
        raise InvalidInput(f"{', '.join(bounds)}: the operator sets the bounds, not the client")
    default.changed(fields)


class RuleBook:
    """One node's. default: of namespaces that nothing is said of. file: by pattern, from the node's file.

    Raises ConfigError for a file whose rules cannot be.
    """

    def __init__(self, default: NamespaceRules, file: Mapping[str, Fields]) -> None:
        try:
            check_patterns(file, default)
        except InvalidInput as error:
            raise ConfigError(f"namespaces: {error}") from None
        self.default = default
        self._file = dict(file)
        self._set: dict[str, Fields] = {}

    def set(self, patterns: Mapping[str, Fields]) -> None:
        """All that operators have set, in place of what they had set before. Raises InvalidInput, and changes
        nothing."""
        check_patterns(patterns, self.default)
        for pattern, fields in self._file.items():
            for changes in patterns.values():
                check_patterns({pattern: {**fields, **changes}}, self.default)
        self._set = dict(patterns)

    def rules(self, namespace_id: bytes, model: str, asked: Fields) -> NamespaceRules:
        """The rules that hold for a namespace whose clients ask for `asked`."""
        fields = {**_closest(self._file, namespace_id, model), **asked, **_closest(self._set, namespace_id, model)}
        return self.default.changed(fields)


def _closest(patterns: Mapping[str, Fields], namespace_id: bytes, model: str) -> Fields:
    ranks = {pattern: _rank(pattern, namespace_id, model) for pattern in patterns}
    best = max(ranks, key=lambda pattern: ranks[pattern], default=None)
    return patterns[best] if best is not None and ranks[best] else {}


def _rank(pattern: str, namespace_id: bytes, model: str) -> int:
    """How closely a pattern names a namespace; 0: not at all."""
    if pattern == namespace_id.hex():
        return PATTERN_CHARACTERS_MAX + 3
    if pattern == model:
        return PATTERN_CHARACTERS_MAX + 2
    return 1 + sum(letter not in "*?[]" for letter in pattern) if fnmatchcase(model, pattern) else 0
