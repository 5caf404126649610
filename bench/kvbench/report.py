"""Results as one HTML page that needs nothing else, and as Markdown: pictures, ratios and tables.

The files are those that `--out` wrote, of any benches, in any number. `--out` is a directory (report.html, report.md)
or the name of a page; the pictures of the Markdown lie beside it, in a folder of the same name.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from kvbench import result
from kvbench.page import Section, Shown, html, markdown
from kvbench.result import Result
from kvstore.errors import InvalidInput

SUFFIXES = (".html", ".md")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="results, as --out wrote them")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR|FILE", help="where the report goes (default: here)"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object, {page, benches}, instead of the page's path"
    )


def run(args: argparse.Namespace) -> int:
    results = [result.read(path) for path in args.files]
    page = write(results, args.out)
    benches = list(dict.fromkeys(each.bench for each in results))
    print(json.dumps({"page": str(page), "benches": benches}) if args.json else page)
    return 0


def write(results: Sequence[Result], out: Path, left_out: Sequence[str] = ()) -> Path:
    """Writes a report and returns its page. left_out: sentences about what could not be measured.

    Raises InvalidInput where it cannot be written, Unavailable without matplotlib.
    """
    page = out if out.suffix in SUFFIXES else out / "report.html"
    page = page.with_suffix(".html")
    found = sections(results)
    pictures = page.with_suffix("")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(html(found, left_out))
        page.with_suffix(".md").write_text(markdown(found, left_out, pictures.name))
        for picture in (picture for section in found for picture in section.pictures):
            pictures.mkdir(exist_ok=True)
            (pictures / f"{picture.name}.svg").write_text(picture.svg)
    except OSError as error:
        raise InvalidInput(f"--out {out}: {error.strerror}") from error
    return page


def require() -> None:
    """Raises Unavailable without matplotlib."""
    from kvbench import plotting  # noqa: F401  # it says so itself


def sections(results: Sequence[Result]) -> list[Section]:
    """The results by their bench, in the order in which those come first."""
    from kvbench import plots_bandwidth, plots_serving, plotting  # need the extra `bench`

    drawing = plots_bandwidth.PICTURES | plots_serving.PICTURES
    found = []
    for bench in dict.fromkeys(each.bench for each in results):
        mine = [each for each in results if each.bench == bench]
        pictures = drawing[bench](mine) if bench in drawing else ()
        shown = [Shown(each.name, each.title, each.caption, plotting.svg(each.figure)) for each in pictures]
        found.append(Section(bench, shown, mine))
    return found
