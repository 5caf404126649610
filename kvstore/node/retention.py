"""Which rules the node's namespaces follow: asked for by clients, set by operators, kept up to date in the catalog."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.errors import InvalidInput
from kvstore.node.catalog import Catalog
from kvstore.node.storage.manifest import KnownNamespace
from kvstore.node.tree import OpenNamespace
from kvstore.pb import node_pb2, types_pb2
from kvstore.policy.quotas import quota_of
from kvstore.policy.rulebook import RuleBook, check_asked
from kvstore.policy.rules import NamespaceRules
from kvstore.rpc.rules import rules_message, rules_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A namespace that clients have opened. asked: what any of them asked for; of one field, the last."""

    namespace: Namespace
    asked: Mapping[str, Any]


class Retention:
    """Belongs to the event loop. changes: rises when namespaces are opened as others than before, or others asked for
    something else."""

    def __init__(self, catalog: Catalog, book: RuleBook) -> None:
        self._catalog = catalog
        self._book = book
        self._set = types_pb2.RuleBook()
        self._told = False
        self._opened: dict[bytes, _Opened] = {}
        self.changes = 0

    @property
    def version(self) -> int:
        """Of what operators have set, as the control plane last told it."""
        return self._set.version

    def opened(self, namespace: Namespace, layout: Layout, asked: Mapping[str, Any]) -> NamespaceRules:
        """A client opens a namespace and asks for rules; answers those that hold.

        Raises InvalidInput when they cannot be, or the namespace was opened with another layout; nothing is changed.
        """
        check_asked(asked, self._book.default)
        known = self._opened.get(namespace.id)
        opened = _Opened(namespace, {**(known.asked if known is not None else {}), **asked})
        rules = self._rules(opened)
        self._catalog.open_namespace(namespace.id, namespace.tenant, layout, rules)
        self._note(opened)
        return rules

    def adopted(self, known: KnownNamespace) -> None:
        """A device has blocks of a namespace. Where it is new here, the rules that it was stored under hold until the
        control plane tells its own, or a client opens it. Raises InvalidInput when it is known with another layout."""
        rules = None if self._catalog.knows(known.namespace_id) else known.rules
        self._catalog.open_namespace(known.namespace_id, known.tenant, known.layout, rules)
        if known.named is not None and known.namespace_id not in self._opened:
            self._note(_Opened(known.named, known.asked))

    def _note(self, opened: _Opened) -> None:
        if self._opened.get(opened.namespace.id) != opened:
            self._opened[opened.namespace.id] = opened
            self.changes += 1

    def known(self) -> list[KnownNamespace]:
        """All namespaces, as a device is to remember them."""
        return [self._known(each) for each in self._catalog.namespaces()]

    def _known(self, namespace: OpenNamespace) -> KnownNamespace:
        named, asked = self.asked(namespace.namespace_id) or (None, {})
        return KnownNamespace(namespace.namespace_id, namespace.tenant, namespace.layout, namespace.rules, named, asked)

    def set(self, book: types_pb2.RuleBook) -> None:
        """Follows what operators have set, in place of what they had set before.

        Raises InvalidInput for rules that cannot be, with this node's file: the former ones hold on. The version is
        noted all the same, so that the control plane does not send them again and again.
        """
        self._set = book
        self._told = True
        self._catalog.set_quotas({tenant: quota_of(rules_of(quota)) for tenant, quota in book.quotas.items()})
        self._book.set({pattern: rules_of(rules) for pattern, rules in book.rules.items()})
        for namespace_id, opened in self._opened.items():
            self._catalog.set_rules(namespace_id, self._rules(opened))

    def heard(self, book: types_pb2.RuleBook) -> None:
        """`set`, for a control plane that tells of its own accord: what cannot be is logged."""
        if not self._told or book.version != self.version:
            try:
                self.set(book)
            except InvalidInput as error:
                log.warning("rules of the control plane are not followed: %s", error)

    def listed(self) -> node_pb2.GetRulesReply:
        """What is set, and what holds for each namespace."""
        return node_pb2.GetRulesReply(
            book=self._set,
            namespaces=[
                node_pb2.NamespaceRules(
                    namespace_id=namespace_id,
                    tenant=opened.namespace.tenant,
                    model=opened.namespace.model,
                    rules=rules_message(self._catalog.rules(namespace_id).to_fields()),
                )
                for namespace_id, opened in self._opened.items()
            ],
        )

    def _rules(self, opened: _Opened) -> NamespaceRules:
        return self._book.rules(opened.namespace.id, opened.namespace.model, opened.asked)

    def asked(self, namespace_id: bytes) -> tuple[Namespace, Mapping[str, Any]] | None:
        """What a namespace was opened as, and what its clients asked for; None: nobody has opened it since the node
        started, and its device does not say."""
        known = self._opened.get(namespace_id)
        return None if known is None else (known.namespace, known.asked)
