"""The engine's stand-in: what it computes, and that it sees what is wrong."""

import numpy as np
import pytest

from kvstore.blocks.keys import chain
from kvstore.cli.demo_bytes import DerivedKV
from kvstore.cli.demo_report import Figures
from kvstore.cli.demo_worker import LAYOUT, Request

PROMPT = np.arange(2 * LAYOUT.block_tokens + 20, dtype=np.uint32)  # two blocks, and two pages of a third


@pytest.fixture
def derived() -> DerivedKV:
    return DerivedKV(LAYOUT)


@pytest.fixture
def request_(derived: DerivedKV) -> Request:
    memory = np.zeros(3 * LAYOUT.block_bytes, np.uint8)
    made = Request(chain(bytes(16), PROMPT, LAYOUT.block_tokens), PROMPT, memory)
    made.derive(derived, 0, 0, LAYOUT.layers)
    return made


def checked(request_: Request, derived: DerivedKV, blocks: int = 3) -> Figures:
    figures = Figures()
    request_.check(derived, blocks, 0, LAYOUT.layers, figures)
    return figures


def test_all_that_was_derived_is_right(request_: Request, derived: DerivedKV) -> None:
    """Every byte of the blocks counts as verified, of the partial one those of its two pages."""
    figures = checked(request_, derived)
    assert figures.mismatches == 0
    assert figures.verified_bytes == 2 * LAYOUT.block_bytes + 2 * LAYOUT.block_bytes // LAYOUT.pages_per_block


@pytest.mark.parametrize(("block", "layer"), [(0, 0), (1, LAYOUT.layers - 1), (2, 3)])
def test_a_wrong_byte_is_counted(request_: Request, derived: DerivedKV, block: int, layer: int) -> None:
    """Also in the last layer, and in the partial block."""
    request_.memory[block, layer, 5] ^= 1
    assert checked(request_, derived).mismatches == 1


def test_only_what_came_is_checked(request_: Request, derived: DerivedKV) -> None:
    """Blocks beyond the loaded prefix hold anything."""
    request_.memory[1:] = 0
    assert checked(request_, derived, blocks=1).mismatches == 0
