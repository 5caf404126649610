"""Inputs made from a seed: messages of any type with plausible and absurd values, and bytes that were good once."""

import struct
from collections.abc import Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_WHOLE = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
}
_TEXTS = ("", "a", "\0", "é\u202e", "x" * 300, "../..", "unix:/nowhere", "127.0.0.1:1", "full", "NHD", "separate")


class Known:
    """Values that mean something to the server, by the name of the field that they belong into."""

    def __init__(self, **values: Sequence[Any]) -> None:
        self.values = values


class Inputs:
    """All that it gives follows from the seed; how often it makes sense, too."""

    def __init__(self, seed: int, known: Known | None = None) -> None:
        self.random = Random(seed)
        self._sense = self.random.choice((0.5, 0.8, 0.97))
        self._known = known.values if known is not None else {}

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """Of the type; each field is set or not, to a known value or any."""
        made = GetMessageClass(descriptor)()
        if descriptor.full_name == "kvstore.v1.Caller":
            made.protocol_version = 1 if self.random.random() < 0.97 else self._whole(0, 2**32 - 1)  # type: ignore[attr-defined]
            return made
        for field in descriptor.fields:
            is_known = field.name == "caller" or field.name in self._known
            if self.random.random() < (0.97 if is_known else 1.1 - self._sense):
                self._fill(made, field, depth)
        return made

    def mutated(self, good: bytes, most: int = 8) -> bytes:
        """The bytes with some flipped, cut out, doubled, or put in."""
        raw, random = bytearray(good), self.random
        for _ in range(random.randint(1, most)):
            at, length = random.randint(0, len(raw)), random.choice((1, 1, 2, 4, 8, 64))
            kind = random.randrange(5)
            if kind == 0 and raw:
                raw[at % len(raw)] ^= 1 << random.randrange(8)
            elif kind == 1:
                del raw[at : at + length]
            elif kind == 2:
                raw[at:at] = raw[max(0, at - length) : at]
            elif kind == 3:
                raw[at:at] = random.randbytes(length)
            elif len(raw) >= 8:
                at = random.randint(0, len(raw) - 8)
                raw[at : at + 8] = struct.pack("<Q", random.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)))
        return bytes(raw)

    def _fill(self, made: Any, field: FieldDescriptor, depth: int) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            for _ in range(self.random.randrange(3)):
                target, name = getattr(made, field.name), self._scalar(field.message_type.fields_by_name["key"])
                if value.message_type is not None:
                    target[name].CopyFrom(self.message(value.message_type, depth + 1))
                else:
                    target[name] = self._scalar(value)
        elif field.message_type is not None:
            if depth > 4:
                return
            if field.is_repeated:
                count = self.random.choice((0, 1, 1, 2, 5))
                getattr(made, field.name).extend(self.message(field.message_type, depth + 1) for _ in range(count))
            else:
                getattr(made, field.name).CopyFrom(self._of_message(field, depth))
        elif field.is_repeated:
            getattr(made, field.name).extend(self._scalar(field) for _ in range(self.random.choice((0, 1, 2, 5, 40))))
        else:
            setattr(made, field.name, self._scalar(field))

    def _of_message(self, field: FieldDescriptor, depth: int) -> Message:
        known = self._known.get(field.name)
        if known and self.random.random() < self._sense:
            return self.random.choice(known)  # type: ignore[no-any-return]
        return self.message(field.message_type, depth + 1)

    def _scalar(self, field: FieldDescriptor) -> Any:
        known = self._known.get(field.name)
        if known and self.random.random() < self._sense:
            return self.random.choice(known)
        if field.type in _WHOLE:
            return self._whole(*_WHOLE[field.type])
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self.random.randbytes(self.random.choice((0, 1, 4, 8, 15, 16, 16, 32, 64, 160, 1000)))
        if field.type == FieldDescriptor.TYPE_STRING:
            return self.random.choice(_TEXTS)
        if field.type == FieldDescriptor.TYPE_BOOL:
            return self.random.random() < 0.5
        if field.type == FieldDescriptor.TYPE_ENUM:
            return self.random.randrange(16)
        assert field.type == FieldDescriptor.TYPE_DOUBLE, field.type
        return self.random.choice((0.0, -1.0, 1e308, float("nan"), float("inf")))

    def _whole(self, least: int, most: int) -> int:
        return self.random.choice((0, 1, 1, 2, 3, 64, 1000, self.random.randint(least, most), least, most))
