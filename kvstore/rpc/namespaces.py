"""Namespaces as messages."""

from dataclasses import asdict

from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import HASH_SCHEME, Namespace
from kvstore.errors import InvalidInput
from kvstore.pb import node_pb2, types_pb2
from kvstore.rpc.layouts import layout_of

NAME_CHARACTERS_MAX, TEXT_CHARACTERS_MAX = 255, 1024
"""Of model and tenant; of each other field. Any client names them, and operators read them: in terminals, in logs, and
in answers that bring those of all namespaces at once."""


def namespace_message(namespace: Namespace) -> types_pb2.Namespace:
    return types_pb2.Namespace(**asdict(namespace))


def told_apart(usage: node_pb2.NamespaceUsage) -> tuple[bytes, str]:
    """By what nodes' usages are added up: by namespace, which has an id, or as the others of a tenant."""
    return usage.namespace_id, "" if usage.namespace_id else usage.tenant


def opened_of(namespace: types_pb2.Namespace, layout: types_pb2.Layout) -> tuple[Namespace, Layout]:
    """A namespace with its layout. Raises InvalidInput for what is none, or when they do not belong together;
    UnsupportedLayout."""
    described = layout_of(layout)
    named = Namespace(
        model=namespace.model,
        layout_fingerprint=namespace.layout_fingerprint,
        tenant=namespace.tenant,
        weights_revision=namespace.weights_revision,
        adapter=namespace.adapter,
        rope=namespace.rope,
        kv_quantisation=namespace.kv_quantisation,
        hash_scheme=namespace.hash_scheme or HASH_SCHEME,
    )
    if named.layout_fingerprint != described.fingerprint:
        raise InvalidInput("namespace: the layout's fingerprint is not the namespace's")
    for field, text in asdict(named).items():
        most = NAME_CHARACTERS_MAX if field in ("model", "tenant") else TEXT_CHARACTERS_MAX
        if isinstance(text, str) and (len(text) > most or not text.isprintable()):
            raise InvalidInput(f"namespace.{field}: at most {most} characters are needed, all printable")
    return named, described
