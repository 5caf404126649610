"""Which rules the node's namespaces follow: asked for by clients, set by operators, kept up to date in the catalog."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.node.catalog import Catalog
from kvstore.policy.rulebook import RuleBook, check_asked
from kvstore.policy.rules import NamespaceRules

Fields = Mapping[str, Any]


@dataclass(slots=True)
class _Asked:
    """What was asked for a namespace, by any of its clients; of one field, by the last."""

    model: str
    fields: dict[str, Any]


class Retention:
    """Belongs to the event loop."""

    def __init__(self, catalog: Catalog, book: RuleBook) -> None:
        self._catalog = catalog
        self._book = book
        self._asked: dict[bytes, _Asked] = {}

    def opened(self, namespace: Namespace, layout: Layout, asked: Fields) -> NamespaceRules:
        """A client opens a namespace and asks for rules; answers those that hold.

        Raises InvalidInput when they cannot be, or the namespace was opened with another layout; nothing is changed.
        """
        check_asked(asked, self._book.default)
        known = self._asked.get(namespace.id)
        fields = {**(known.fields if known is not None else {}), **asked}
        rules = self._book.rules(namespace.id, namespace.model, fields)
        self._catalog.open_namespace(namespace.id, namespace.tenant, layout, rules)
        self._asked[namespace.id] = _Asked(namespace.model, fields)
        return rules
