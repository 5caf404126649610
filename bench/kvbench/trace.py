"""Request traces: which prompt came when, as the names of its blocks.

One JSON object a line, as the Mooncake traces have it: `timestamp` (ms) and `hash_ids`, one id per block of 512 tokens,
equal where the whole prefix up to and including that block is equal; `input_length` and `output_length` (tokens), which
only those need who make tokens of it. Other fields are not looked at.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvstore.errors import InvalidInput

TRACE_BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Request:
    """at_ns: from the trace's beginning. blocks: names, root first. input_tokens, output_tokens: 0 where not told."""

    at_ns: int
    blocks: tuple[int, ...]
    input_tokens: int = 0
    output_tokens: int = 0


def read_with_lengths(path: Path) -> list[Request]:
    """`read`, of a trace whose requests all say their lengths, and have an id for each block of their prompt."""
    requests = read(path)
    for number, request in enumerate(requests, 1):
        if request.input_tokens < 1 or len(request.blocks) != -(-request.input_tokens // TRACE_BLOCK_TOKENS):
            raise InvalidInput(
                f"{path}, request {number}: {len(request.blocks)} hash_ids are not one per {TRACE_BLOCK_TOKENS} of"
                f" {request.input_tokens} tokens (input_length)"
            )
        if request.output_tokens < 0 or min(request.blocks) < 0:
            raise InvalidInput(f"{path}, request {number}: neither output_length nor an id may be negative")
    return requests


def read(path: Path) -> list[Request]:
    """A trace in the order of its times. Raises InvalidInput with the line that is none."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: {error}") from error
    requests = list(_requests(lines, path))
    if not requests:
        raise InvalidInput(f"{path}: no request in it")
    return requests


def _requests(lines: Sequence[str], path: Path) -> Iterator[Request]:
    before_ns = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            request = Request(
                int(fields["timestamp"] * 1_000_000),
                tuple(int(name) for name in fields["hash_ids"]),
                int(fields.get("input_length", 0)),
                int(fields.get("output_length", 0)),
            )
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise InvalidInput(f"{path}, line {number}: timestamp and hash_ids are needed: {error!r}") from error
        if request.at_ns < before_ns:
            raise InvalidInput(f"{path}, line {number}: the time falls")
        if len(set(request.blocks)) < len(request.blocks):
            raise InvalidInput(f"{path}, line {number}: a block comes twice")
        before_ns = request.at_ns
        yield request


def keys(requests: Sequence[Request]) -> dict[int, bytes]:
    """A key for each name, as evenly spread as real ones are."""
    names = {name for request in requests for name in request.blocks}
    return {name: hashlib.blake2b(str(name).encode(), digest_size=16).digest() for name in names}
