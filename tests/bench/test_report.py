"""Reports: every bench has its pictures, nothing in a file can break the page, and odd results do no harm."""

import base64
import json
import re
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from kvbench import plots_bandwidth, plots_serving, report
from kvbench.cli import COMMANDS, main
from kvbench.result import Result
from kvstore.errors import InvalidInput
from tests.bench import results_drawn

DRAWING = plots_bandwidth.PICTURES | plots_serving.PICTURES


class Page(HTMLParser):
    """What of a page would be loaded from elsewhere, its pictures, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.loads: list[str] = []
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href") and value:
                inline = value.startswith("data:image/svg+xml;base64,")
                (self.pictures if inline else self.loads).append(value)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def write(results: list[Result], folder: Path) -> tuple[Page, str]:
    page = report.write(results, folder)
    return Page(page.read_text()), page.with_suffix(".md").read_text()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `report --json` says when it has made a report of files of all benches; its pictures take seconds."""
    folder = tmp_path_factory.mktemp("everything")
    files = [folder / f"{number}.json" for number, _ in enumerate(results_drawn.all_of_them())]
    for file, result in zip(files, results_drawn.all_of_them(), strict=True):
        file.write_text(result.to_json())
    with redirect_stdout(StringIO()) as said:
        assert main(["report", *map(str, files), "--out", str(folder / "out"), "--json"]) == 0
    assert {path.name for path in (folder / "out").iterdir()} >= {"report.html", "report.md"}
    told: dict[str, Any] = json.loads(said.getvalue())
    return told


def test_a_report_of_everything_stands_alone(everything: dict[str, Any]) -> None:
    """From files to one page without anything to load, with every picture; the Markdown's pictures lie beside it."""
    page = Path(everything["page"])
    assert (page.name, page.parent.name) == ("report.html", "out")
    assert set(everything["benches"]) == {each.bench for each in results_drawn.all_of_them()}
    found = Page(page.read_text())
    assert all(link.startswith("#") for link in found.loads)
    assert len(found.pictures) == 15
    for picture in found.pictures:
        ElementTree.fromstring(base64.b64decode(picture.partition(",")[2]))
    named = re.findall(r"!\[.*?\]\((.*?)\)", page.with_suffix(".md").read_text())
    assert len(named) == 15
    assert all((page.parent / name).is_file() for name in named)


@pytest.mark.parametrize("bench", DRAWING)
def test_every_picture_names_its_units_and_lines(bench: str) -> None:
    """Axes have labels; the legend is whole."""
    mine = [each for each in results_drawn.all_of_them() if each.bench == bench]
    pictures = list(DRAWING[bench](mine))
    assert pictures
    for picture in pictures:
        assert picture.figure.axes[0].get_ylabel()
        FigureCanvasAgg(picture.figure).draw()
        (legend,) = picture.figure.legends
        inside = legend.get_window_extent()
        assert picture.figure.bbox.x0 <= inside.x0
        assert inside.x1 <= picture.figure.bbox.x1
        assert picture.title
        assert picture.caption


def test_what_is_drawn_is_a_bench() -> None:
    """A renamed command would lose its pictures without a word."""
    assert DRAWING.keys() - {"goodput", "agents", "tiers"} <= COMMANDS.keys()


def test_a_line_goes_through_its_medians() -> None:
    """In the panel and at the sizes at which they were measured."""
    result = results_drawn.transfer()
    (picture,) = plots_bandwidth.transfer([result])
    middle = picture.figure.axes[1]
    (line,) = [line for line in middle.lines if line.get_label() == "fabric"]
    wanted = {
        row["size_bytes"]: row["gb_per_s"]["median"]
        for row in result.measurements
        if row["contestant"] == "fabric" and row["in_flight"] == 8
    }
    assert dict(zip(map(int, line.get_xdata()), line.get_ydata(), strict=True)) == wanted  # type: ignore[arg-type]


def test_a_limit_at_one_size_is_seen() -> None:
    """A line through one point has no length, and no marker; the contestants' have one."""
    result = results_drawn.nvme()
    rows = [row for row in result.measurements if row["block_bytes"] == 2 * 2**20]
    (picture,) = plots_bandwidth.nvme([replace(result, measurements=rows)])
    for axes in picture.figure.axes:
        (limit,) = [line for line in axes.lines if line.get_label() == "fio"]
        assert len({*map(float, limit.get_xdata())}) == 2  # type: ignore[arg-type]
        assert len({*map(float, limit.get_ydata())}) == 1  # type: ignore[arg-type]


def test_limits_are_grey() -> None:
    """Bars of the machine's own are told from those of kvstore, and from each other."""
    (picture,) = plots_bandwidth.local([results_drawn.local()])
    colours = {bars.get_label(): bars[0].get_facecolor()[:3] for bars in picture.figure.axes[0].containers}
    grey = {name for name, colour in colours.items() if len({*colour}) == 1}
    assert grey == {"memcpy", "memcpy + xxh3"}
    assert len({*colours.values()}) == len(colours)


def test_gain_is_drawn_over_helpers_and_faults_are_left_out() -> None:
    """A killed helper is no point of the curve."""
    runs = [results_drawn.dualpath(2), results_drawn.dualpath(1), results_drawn.dualpath(3, {"kind": "kill"})]
    (picture,) = plots_serving.dualpath(runs)
    (line,) = [line for line in picture.figure.axes[0].lines if line.get_label() == "DualPath"]
    assert [*line.get_xdata()] == [1, 2]
    assert list(plots_serving.dualpath(runs[2:])) == []


@pytest.mark.parametrize("result", results_drawn.all_of_them(), ids=lambda result: result.bench)
@pytest.mark.parametrize("measurements", [[], [{"other": 1}], [{"path": None, "way": 7, "gb_per_s": "fast", "ms": {}}]])
def test_results_without_their_columns_have_no_pictures(
    result: Result, measurements: list[dict[str, object]], tmp_path: Path
) -> None:
    """They are shown as tables; a report of many files does not fail for one."""
    odd = replace(result, measurements=measurements, settings={})
    page, _ = write([odd], tmp_path)
    assert page.pictures == []
    assert result.bench in page.texts


def test_texts_are_no_markup(tmp_path: Path) -> None:
    """A name with tags or bars in it is shown as it is."""
    bad = "<script>x</script>|*a*"
    odd = replace(results_drawn.models(), measurements=[{"model": bad}], warnings=[bad], settings={"x": bad})
    page, text = write([odd], tmp_path)
    assert "script" not in page.tags
    assert bad in page.texts
    assert "<script" not in text.replace("\\<", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {2}


def test_warnings_and_what_was_left_out_are_shown(tmp_path: Path) -> None:
    """Before the figures that they speak against."""
    page = report.write([results_drawn.transfer()], tmp_path, left_out=["peers: not installed"]).read_text()
    assert page.index("peers: not installed") < page.index("noisy machine") < page.index("<table")


def test_the_machine_is_named(tmp_path: Path) -> None:
    """All that a figure depends on; what a file leaves out, or has in another form, does no harm."""
    page, text = write([results_drawn.models()], tmp_path)
    shown = " ".join(page.texts)
    for part in ("Some CPU", "6.18", "UCX over tcp", "24 GiB", "eth0 (25000 Mbit/s)", "Some SSD (960 GB)", "no GPU"):
        assert part in shown
    assert "Some SSD" in text
    for odd in ({}, {"nics": 7, "disks": [7, {"name": "vda"}], "memory_bytes": "much", "gpus": ["H200"]}):
        page, _ = write([replace(results_drawn.models(), machine=odd)], tmp_path)
        assert "? CPUs" in " ".join(page.texts)


def test_equal_results_make_equal_pictures(everything: dict[str, Any], tmp_path: Path) -> None:
    """So that a report in a repository changes only where figures do."""
    again = report.write(results_drawn.all_of_them(), tmp_path)
    assert again.read_text() == Path(everything["page"]).read_text()


def test_without_json_the_page_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing else is printed."""
    file = tmp_path / "x.json"
    file.write_text(results_drawn.models().to_json())
    assert main(["report", str(file), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'report.html'}\n"


def test_a_page_may_be_named(tmp_path: Path) -> None:
    """By either of the two files."""
    for name in ("x.html", "x.md"):
        assert report.write([results_drawn.models()], tmp_path / name) == tmp_path / "x.html"


@pytest.mark.parametrize(("content", "said"), [("{}", "not a result"), (None, "No such file")])
def test_files_that_are_no_results(
    content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They end the command with their name; nothing is written."""
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    assert main(["report", str(path), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """Is named."""
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(InvalidInput, match="--out"):
        report.write([results_drawn.models()], tmp_path / "file" / "out")


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, as everything else that is absent."""
    for name in [name for name in sys.modules if name.startswith(("kvbench.plot", "matplotlib"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("plotting", "plots_bandwidth", "plots_serving"):
        monkeypatch.delattr(f"kvbench.{name}", raising=False)
    path = tmp_path / "x.json"
    path.write_text(results_drawn.models().to_json())
    assert main(["report", str(path), "--out", str(tmp_path)]) == 2
    assert "kvstore[bench]" in capsys.readouterr().err


def test_words_stand_at_the_left_and_numbers_at_the_right(tmp_path: Path) -> None:
    """Of tables; a column of both is one of words."""
    rows: list[dict[str, Any]] = [{"way": "single path", "limit": "memcpy", "ms": 1.5}]
    result = Result("ops", {}, {}, ("way",), rows, {}, [], {})
    text = report.write([result], tmp_path).read_text()
    assert '<td class="text">memcpy</td><td>1.5</td>' in text
    assert '<th class="text">limit</th><th>ms</th>' in text
