"""A report as one HTML page that needs nothing else, and as Markdown with its pictures beside it. Pure text."""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from kvbench import table
from kvbench.result import Result

_LONG_TABLE = 24
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 75rem; margin: 2rem auto;
       padding: 0 1.5rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 3rem; border-bottom: 1px solid #ccc; padding-bottom: .3rem; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; } figcaption { color: #444; max-width: 60rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; } th { border-bottom: 2px solid #999; }
.warning { background: #fff4e0; border-left: 4px solid #E69F00; padding: .4rem .8rem; margin: .5rem 0; }
summary { cursor: pointer; margin: .6rem 0; } .small { color: #444; font-size: 13px; }
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """One picture, drawn. name: of its file."""

    name: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class Section:
    """All results of one bench."""

    bench: str
    pictures: Sequence[Shown]
    results: Sequence[Result]


def html(sections: Sequence[Section], left_out: Sequence[str]) -> str:
    """left_out: sentences about what could not be measured."""
    links = " · ".join(f'<a href="#{escape(each.bench)}">{escape(each.bench)}</a>' for each in sections)
    body = [f"<h1>kvbench</h1><p>{links}</p>", *(f"<p>{escape(text)}</p>" for text in machines(sections))]
    body += [f'<p class="warning">{escape(text)}</p>' for text in left_out]
    for section in sections:
        body.append(f'<h2 id="{escape(section.bench)}">{escape(section.bench)}</h2>')
        body += [_html_picture(picture) for picture in section.pictures]
        body += [part for result in section.results for part in _html_result(result)]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>kvbench</title>'
    head += f"<style>{_STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def _html_picture(picture: Shown) -> str:
    source = base64.b64encode(picture.svg.encode()).decode()
    return (
        f"<h3>{escape(picture.title)}</h3><figure>"
        f'<img alt="{escape(picture.title)}" src="data:image/svg+xml;base64,{source}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _html_result(result: Result) -> Iterator[str]:
    yield from (f'<p class="warning">{escape(text)}</p>' for text in result.warnings)
    yield f'<p class="small">{escape(_settings(result))}</p>'
    for columns, rows in _tables(result):
        marks = [_mark(row[number] for row in rows) for number in range(len(columns))]
        head = _html_row("th", columns, marks)
        made = "".join(_html_row("td", row, marks) for row in rows)
        text = f'<div class="table"><table><thead>{head}</thead><tbody>{made}</tbody></table></div>'
        yield text if len(rows) <= _LONG_TABLE else f"<details><summary>{len(rows)} points</summary>{text}</details>"


def _html_row(tag: str, cells: Sequence[str], marks: Sequence[str]) -> str:
    row = (f"<{tag}{mark}>{escape(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True))
    return f"<tr>{''.join(row)}</tr>"


def _mark(cells: Iterable[str]) -> str:
    """Of a column: numbers stand at its right, words at its left."""
    return ' class="text"' if any(cell[:1].isalpha() for cell in cells) else ""


def markdown(sections: Sequence[Section], left_out: Sequence[str], folder: str) -> str:
    """folder: of the pictures, as the text refers to them."""
    parts = ["# kvbench", *machines(sections), *(f"**Left out:** {_plain(text)}" for text in left_out)]
    for section in sections:
        parts.append(f"## {_plain(section.bench)}")
        for picture in section.pictures:
            parts += [f"### {_plain(picture.title)}", f"![{_plain(picture.title)}]({folder}/{picture.name}.svg)"]
            parts.append(_plain(picture.caption))
        for result in section.results:
            parts += [f"> {_plain(text)}" for text in result.warnings]
            parts.append(_plain(_settings(result)))
            parts += [_markdown_table(columns, rows) for columns, rows in _tables(result)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def machines(sections: Sequence[Section]) -> list[str]:
    """One line for each machine that results are from."""
    lines = dict.fromkeys(
        f"{table.machine_in_a_line(result.machine)}; {_devices(result.machine)}; {_versions(result.machine)}"
        for section in sections
        for result in section.results
    )
    return [*lines]


def _devices(machine: Mapping[str, Any]) -> str:
    memory, nics, disks = (machine.get(name) for name in ("memory_bytes", "nics", "disks"))
    known = [f"{memory / 2**30:.0f} GiB"] if isinstance(memory, int) else []
    known += [f"{name} ({speed})" for name, speed in nics.items()] if isinstance(nics, Mapping) else []
    known += [_disk(disk) for disk in disks if isinstance(disk, Mapping)] if isinstance(disks, list) else []
    return ", ".join([*known, *map(str, machine.get("gpus") or ["no GPU"])])


def _disk(disk: Mapping[str, Any]) -> str:
    size = f"{disk['bytes'] / 1e9:.0f} GB" if isinstance(disk.get("bytes"), int) else "size unknown"
    return " ".join(str(part) for part in ("disk", disk.get("name", "?"), disk.get("model", ""), f"({size})") if part)


def _versions(machine: Mapping[str, Any]) -> str:
    versions = machine.get("versions")
    known = [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, Mapping) else []
    return ", ".join(known)


def _settings(result: Result) -> str:
    return "settings: " + ", ".join(f"{name} {json.dumps(value)}" for name, value in result.settings.items())


def _tables(result: Result) -> Iterator[tuple[Sequence[str], Sequence[Sequence[str]]]]:
    """Ratios and headlines first: they are few."""
    headlines = {name: value for name, value in result.extras.items() if not isinstance(value, list | dict)}
    few = [[name, table.shown(value)] for name, value in [*result.ratios.items(), *headlines.items()]]
    if few:
        yield ("ratio", "value"), few
    yield from (table.flat(part) for part in table.parts(result))


def _plain(text: str) -> str:
    """Nothing of it is markup, and it stays in its line."""
    flat = " ".join(text.split())
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#" else sign for sign in flat)
