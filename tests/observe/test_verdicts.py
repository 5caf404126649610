"""The words of `kvstore admin explain`: what the document has of them, and the page."""

import re
from pathlib import Path

from kvstore.control.page.site import STATIC
from kvstore.observe.verdicts import Verdict

DOCUMENT = (Path(__file__).parents[2] / "docs" / "admin.md").read_text()


def test_the_table_of_verdicts() -> None:
    """docs/admin.md has every verdict, and no other."""
    section = DOCUMENT.partition("## Why a block missed")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [*Verdict]


def test_the_page_asks_for_verdicts_that_there_are() -> None:
    """Its script compares them as text."""
    asked = re.findall(r'\bverdict === "(\w+)"', (STATIC / "find.js").read_text())
    assert asked
    assert {*asked} <= {*Verdict}
