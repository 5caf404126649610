"""Rules and quotas on the wire: the fields that are set, by name."""

from collections.abc import Mapping
from typing import Any

from kvstore.pb import types_pb2


def rules_of(message: types_pb2.Rules | types_pb2.Quota) -> dict[str, Any]:
    """The fields that a message sets; those that it does not are to stay as they are."""
    return {field.name: value for field, value in message.ListFields()}


def rules_message(fields: Mapping[str, Any]) -> types_pb2.Rules:
    """A message that sets these fields, which must be known ones of the right types (`NamespaceRules.changed`)."""
    return types_pb2.Rules(**fields)
