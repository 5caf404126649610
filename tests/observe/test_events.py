"""A node's events wait until they were heard: in order, bounded, and what is lost is counted."""

import re
from pathlib import Path

from kvstore.observe.events import REPORTED_MAX, TEXT_MAX, WAITING_MAX, Kind, Outbox, make_event

SECOND_NS = 1_000_000_000
DOCUMENT = (Path(__file__).parents[2] / "docs" / "admin.md").read_text()


def texts(outbox: Outbox, now_ns: int = SECOND_NS) -> list[str]:
    report = outbox.report(now_ns)
    return [] if report is None else [event.text for event in report.events]


def add(outbox: Outbox, *said: str, now_ns: int = 0) -> None:
    for text in said:
        outbox.add(make_event(Kind.NODE_LOST, text), now_ns)


def test_they_are_told_again_until_they_were_heard() -> None:
    """With what has come meanwhile; each with its age."""
    outbox = Outbox()
    assert outbox.report(0) is None
    add(outbox, "a", now_ns=1_000_000)
    add(outbox, "b", now_ns=3_000_000)
    report = outbox.report(5_000_000)
    assert report is not None
    assert (report.first, list(report.ages_ms), report.lost) == (1, [4, 2], 0)
    add(outbox, "c")
    assert texts(outbox) == ["a", "b", "c"]
    outbox.heard(report)
    outbox.heard(report)
    again = outbox.report(SECOND_NS)
    assert again is not None
    assert (again.first, texts(outbox)) == (3, ["c"])
    outbox.heard(again)
    assert outbox.report(0) is None


def test_the_oldest_go_when_nobody_hears() -> None:
    """They are counted; a report has a part of what waits; an old report ends nothing that came later."""
    outbox = Outbox()
    add(outbox, *(str(number) for number in range(10)))
    old = outbox.report(0)
    add(outbox, *(str(number) for number in range(10, WAITING_MAX + 12)))
    report = outbox.report(0)
    assert old is not None
    assert report is not None
    assert (len(outbox), report.first, report.lost, len(report.events)) == (WAITING_MAX, 13, 12, REPORTED_MAX)
    assert report.events[0].text == "12"
    outbox.heard(old)
    assert len(outbox) == WAITING_MAX


def test_blocks_gone_are_numbers_by_reason() -> None:
    """Once per second, of what has come since; what stands still is no news."""
    outbox = Outbox()
    outbox.gone({"expired": 5}, SECOND_NS)
    outbox.gone({"expired": 9}, SECOND_NS + 1)
    outbox.gone({"expired": 9, "shed": 1}, 2 * SECOND_NS)
    outbox.gone({"expired": 9, "shed": 1}, 3 * SECOND_NS)
    report = outbox.report(3 * SECOND_NS)
    assert report is not None
    assert [(event.reason, event.count) for event in report.events] == [("expired", 5), ("expired", 4), ("shed", 1)]


def test_texts_are_cut() -> None:
    """A message of any length makes an event of a bounded one."""
    event = make_event(Kind.DEVICE_OUT, "x" * 10_000, reason="y" * 10_000, count=3)
    assert (len(event.text), len(event.reason), event.count) == (TEXT_MAX, TEXT_MAX, 3)


def test_the_table_of_kinds() -> None:
    """docs/admin.md has every kind, and no other."""
    section = DOCUMENT.partition("## Events")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [*Kind]
