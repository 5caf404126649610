"""The rules and quotas that operators have set: one document in the index, so that all control planes over it agree."""

from collections.abc import Callable
from typing import Any

from kvstore.control.index.base import Index
from kvstore.errors import InvalidInput, Refused, TooLarge
from kvstore.pb import types_pb2
from kvstore.policy.quotas import check_tenant, quota_of
from kvstore.policy.rulebook import check_patterns
from kvstore.policy.rules import DEFAULT_RULES
from kvstore.rpc.rules import rules_message, rules_of

_DOCUMENT = "rules"
_ATTEMPTS = 8
PATTERNS_MAX = 1024
TENANTS_MAX = 1024


class SetRules:
    """`clock` gives milliseconds since 1970: versions of a control plane that lost its index are still later ones."""

    def __init__(self, index: Index, clock: Callable[[], int]) -> None:
        self._index = index
        self._clock = clock

    async def book(self) -> types_pb2.RuleBook:
        """All of them."""
        return types_pb2.RuleBook.FromString(await self._index.document(_DOCUMENT))

    async def change(self, pattern: str, fields: dict[str, Any]) -> types_pb2.RuleBook:
        """Sets some fields for a pattern. Raises InvalidInput, and TooLarge for too many patterns."""
        if not fields:
            raise InvalidInput("rules: nothing is to be set")

        def edit(book: types_pb2.RuleBook) -> None:
            merged = {**rules_of(book.rules[pattern]), **fields}
            check_patterns({pattern: merged}, DEFAULT_RULES)
            book.rules[pattern].CopyFrom(rules_message(merged))
            if len(book.rules) > PATTERNS_MAX:
                raise TooLarge(f"rules: more than {PATTERNS_MAX} patterns")

        return await self._edit(edit)

    async def remove(self, pattern: str) -> types_pb2.RuleBook:
        """Nothing is set for a pattern any more. Raises InvalidInput when nothing was."""

        def edit(book: types_pb2.RuleBook) -> None:
            if pattern not in book.rules:
                raise InvalidInput(f"rules: nothing is set for {pattern!r}")
            del book.rules[pattern]

        return await self._edit(edit)

    async def change_quota(self, tenant: str, fields: dict[str, int]) -> types_pb2.RuleBook:
        """Sets a tenant's quota in some tiers. Raises InvalidInput, and TooLarge for too many tenants."""
        check_tenant(tenant)
        quota_of(fields)
        if not fields:
            raise InvalidInput("quota: nothing is to be set")

        def edit(book: types_pb2.RuleBook) -> None:
            book.quotas[tenant].MergeFrom(types_pb2.Quota(**fields))
            if len(book.quotas) > TENANTS_MAX:
                raise TooLarge(f"quota: more than {TENANTS_MAX} tenants")

        return await self._edit(edit)

    async def remove_quota(self, tenant: str) -> types_pb2.RuleBook:
        """A tenant has no quota any more. Raises InvalidInput when it had none."""

        def edit(book: types_pb2.RuleBook) -> None:
            if tenant not in book.quotas:
                raise InvalidInput(f"quota: none is set for {tenant!r}")
            del book.quotas[tenant]

        return await self._edit(edit)

    async def _edit(self, edit: Callable[[types_pb2.RuleBook], None]) -> types_pb2.RuleBook:
        for _ in range(_ATTEMPTS):
            old = await self._index.document(_DOCUMENT)
            book = types_pb2.RuleBook.FromString(old)
            edit(book)
            book.version = max(book.version + 1, self._clock())
            if await self._index.replace_document(_DOCUMENT, old, book.SerializeToString()):
                return book
        raise Refused("rules: others change them all the time")
