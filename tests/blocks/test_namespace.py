"""Namespaces: every field separates."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.errors import InvalidInput

LAYOUT = Layout.dense(layers=2, kv_heads=2, head_dim=8)
BASE = Namespace.of("m", LAYOUT)
TEXTS = sorted(field.name for field in dataclasses.fields(Namespace) if field.name != "layout_fingerprint")


@pytest.mark.parametrize("field", TEXTS)
def test_every_field_separates(field: str) -> None:
    """Another value in any one field gives another id."""
    assert dataclasses.replace(BASE, **{field: "x" + getattr(BASE, field)}).id != BASE.id


def test_the_layout_separates() -> None:
    """The same model with another layout is another namespace."""
    other = Layout.dense(layers=2, kv_heads=2, head_dim=8, page_tokens=32)
    assert Namespace.of("m", other).id != BASE.id


@given(st.text(min_size=1), st.text(), st.text())
def test_fields_do_not_run_into_each_other(model: str, rope: str, tenant: str) -> None:
    """Characters moved from one field to its neighbour give another id."""
    one = Namespace.of(model, LAYOUT, rope=rope, tenant="t" + tenant)
    other = Namespace.of(model + rope, LAYOUT, rope="", tenant="t" + tenant)
    assert (one.id == other.id) == (rope == "")
    swapped = Namespace.of(model, LAYOUT, rope="t" + tenant, tenant="t" + rope)
    assert (one.id == swapped.id) == (one == swapped)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": ""}, "must not be empty"),
        ({"tenant": ""}, "must not be empty"),
        ({"layout_fingerprint": b"short"}, "must be 16 bytes"),
    ],
)
def test_what_is_no_namespace(changes: dict[str, Any], text: str) -> None:
    """A namespace without model, tenant or a whole fingerprint is refused."""
    with pytest.raises(InvalidInput, match=text):
        dataclasses.replace(BASE, **changes)
