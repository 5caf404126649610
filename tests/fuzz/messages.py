"""Messages of any type, as hypothesis makes them from their descriptors, and changes of bytes that were good once."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Known = Mapping[str, Sequence[Any]]
"""Values that mean something to the server, by the name of the field that they belong into."""
Values = dict[str, Any]
"""Of the fields of one message."""
VARIANTS = 4
"""Of a message that makes sense, at most."""

_WHOLE = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
}
_NUMBERS = (0, 1, 2, 3, 64, 1000)
_COLUMNS = tuple(byte * count for byte in (b"\0", b"\1", b"\xff") for count in (4, 8, 16, 32, 160, 1000))
_TEXTS = ("", "a", "\0", "é\u202e", "x" * 300, "../..", "unix:/nowhere", "127.0.0.1:1", "full", "NHD", "separate")
_PUT = st.sampled_from([struct.pack("<Q", n) for n in (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)]) | st.binary(
    min_size=1, max_size=32
)
_LENGTHS = st.sampled_from((1, 2, 4, 8, 64))


def families(of: Descriptor, known: Known) -> SearchStrategy[list[Message]]:
    """A message that makes sense as far as that is known, and some that differ from it in one field."""
    make = GetMessageClass(of)
    changes = st.lists(_change(of, known), max_size=VARIANTS)
    return st.builds(
        lambda values, others: [make(**values), *(make(**(values | other)) for other in others)],
        _sense(of, known),
        changes,
    )


def _sense(of: Descriptor, known: Known) -> SearchStrategy[Values]:
    """Fields of known names are there, with known values; others may be."""
    return st.fixed_dictionaries(
        {field.name: st.sampled_from(known[field.name]) for field in of.fields if field.name in known},
        optional={field.name: _values(field, known) for field in of.fields if field.name not in known},
    )


def _change(of: Descriptor, known: Known) -> SearchStrategy[Values]:
    """Any value of its type for one field."""
    each = [st.fixed_dictionaries({field.name: _values(field, known)}) for field in of.fields]
    return st.one_of(each) if each else st.just({})


def _values(field: FieldDescriptor, known: Known) -> SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[part] for part in ("key", "value"))
        return st.dictionaries(_value(key, known), _value(value, known), max_size=3)
    one = _value(field, known)
    return st.lists(one, max_size=5) if field.is_repeated else one


def _value(field: FieldDescriptor, known: Known) -> SearchStrategy[Any]:
    if field.message_type is not None:
        make = GetMessageClass(field.message_type)
        return _sense(field.message_type, known).map(lambda values: make(**values))
    if field.type in _WHOLE:
        least, most = _WHOLE[field.type]
        return st.sampled_from((*_NUMBERS, least, most)) | st.integers(least, most)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.sampled_from(_COLUMNS) | st.binary(max_size=40)
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.sampled_from(_TEXTS) | st.text(max_size=20)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_ENUM:
        return st.integers(0, 15)
    assert field.type == FieldDescriptor.TYPE_DOUBLE, field.type
    return st.floats()


@dataclass(frozen=True)
class Edit:
    """One change of bytes, at any place: some put in, some there doubled, bits of one flipped, some cut out."""

    put: bytes = b""
    double: int = 0
    flip: int = 0
    cut: int = 0

    def at(self, place: int, raw: bytes) -> bytes:
        """The bytes with the change there. place: at most their length."""
        here = raw[place:]
        flipped = bytes(byte ^ self.flip for byte in here[:1]) + here[1:]
        return raw[:place] + self.put + here[: self.double] + flipped[self.cut :]


EDITS: SearchStrategy[Edit] = st.one_of(
    st.builds(Edit, flip=st.sampled_from([1 << bit for bit in range(8)])),
    st.builds(Edit, cut=_LENGTHS),
    st.builds(Edit, double=_LENGTHS),
    st.builds(Edit, put=_PUT),
    _PUT.map(lambda put: Edit(put=put, cut=len(put))),
)


@dataclass(frozen=True)
class Mutation:
    """Some edits at some places, and a last one that is tried at many."""

    first: Sequence[tuple[Edit, int]]
    last: Edit
    start: int

    def of(self, good: bytes, most: int) -> list[bytes]:
        """So many mutants of the bytes at most, of places that are evenly spread."""
        for edit, place in self.first:
            good = edit.at(place % (len(good) + 1), good)
        step = -(-(len(good) + 1) // most)
        return [self.last.at(place, good) for place in range(self.start % step, len(good) + 1, step)]


_PLACES = st.integers(0, 2**16)
MUTATIONS: SearchStrategy[Mutation] = st.builds(
    Mutation, st.lists(st.tuples(EDITS, _PLACES), max_size=3), EDITS, _PLACES
)
