"""What is written can be read, in both themes."""

import re

import pytest

from kvstore.control.page.site import STATIC

STYLES = (STATIC / "page.css").read_text()
COLOURS = re.findall(r"--([a-z-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", STYLES)
GROUNDS = ("ground", "sheet")
NO_TEXT = {"ground", "sheet", "sunk", "line", "wire", "bad-ground"}
CONTRAST_MIN = 4.5
"""Of text, by WCAG 2.2, level AA."""


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out(theme: str) -> None:
    """Every colour that text has, on every ground that it stands on."""
    colours = {name: light if theme == "light" else dark for name, light, dark in COLOURS}
    assert contrast(colours["ink"], colours["bad-ground"]) >= CONTRAST_MIN
    assert contrast(colours["bad"], colours["bad-ground"]) >= CONTRAST_MIN
    for ground in GROUNDS:
        weak = {
            name: colours[name] for name in colours.keys() - NO_TEXT if contrast(colours[name], colours[ground]) < 4.5
        }
        assert weak == {}, ground


def test_every_tint_has_a_colour() -> None:
    """Each that a script names, and each that the styles map to one of the colours."""
    named = {name for name, _, _ in COLOURS}
    mapped = dict(re.findall(r'\[data-tint="([a-z]+)"\] \{ --tint: var\(--([a-z]+)\)', STYLES))
    assert set(mapped.values()) <= named
    html = (STATIC / "index.html").read_text()
    charts = (STATIC / "charts.js").read_text()
    used = set(re.findall(r'data-tint="([a-z]+)"', html)) | set(re.findall(r', "([a-z]+)"\]', charts))
    assert used - set(mapped) == set()
