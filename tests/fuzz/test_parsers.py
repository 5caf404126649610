"""Bytes and texts that others have made, by the ten thousand: read, or refused with an error that has a name.

`scripts/fuzz` goes on from there, along each parser's own branches (`guided.py`).
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import strategies as st

from kvstore.errors import KVStoreError
from tests.fuzz.amounts import PARSED, SECONDS, Until, explore
from tests.fuzz.messages import MUTATIONS, Mutation
from tests.fuzz.parsers import Parser, parsers, refuses_or_reads
from tests.node.storage.damage import fill, served

pytestmark = pytest.mark.timeout(SECONDS + 120)
_PARSERS = parsers()
_AT_ONCE = 100
_DEEP = 100_000
_ABSURD = (b"", b"\0", b"\xff" * 100, b"1e999", b"[" * _DEEP, b'{"a":' * _DEEP, b"a=" + b"[" * _DEEP)


@pytest.mark.parametrize("parser", _PARSERS, ids=lambda parser: parser.name)
def test_bytes_and_texts(parser: Parser, record_property: Callable[[str, object], None]) -> None:
    """What is good is read; nothing makes a parser fail in a way that it does not promise."""
    assert refuses_or_reads(parser, parser.good)
    for raw in _ABSURD:
        refuses_or_reads(parser, raw)

    def run(mutation: Mutation) -> int:
        mutants = mutation.of(parser.good, _AT_ONCE)
        for raw in mutants:
            refuses_or_reads(parser, raw)
        return len(mutants)

    until = Until(inputs=PARSED / len(_PARSERS))
    explore(MUTATIONS, run, until)
    record_property("inputs", until.done)


def test_files_of_a_device(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """One of them changed in any way: what is found is what was stored, or the device says why it does not open."""
    whole, work, until = tmp_path / "whole", tmp_path / "work", Until(seconds=SECONDS)
    fill(whole)
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    # LMDB trusts its file: what a damaged one does to a process is tested with processes of their own.
    names = [name for name in names if name.suffix not in (".mdb", ".lock")]

    def run(change: tuple[Path, Mutation]) -> int:
        name, mutation = change
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(whole, work)
        (mutant,) = mutation.of((whole / name).read_bytes(), 1)
        (work / name).write_bytes(mutant)
        with suppress(KVStoreError):
            served(work)
        return 1

    explore(st.tuples(st.sampled_from(names), MUTATIONS), run, until)
    record_property("inputs", until.done)
