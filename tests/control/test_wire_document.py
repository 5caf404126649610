"""docs/wire.md says what the code does, where a program can compare the two."""

import hashlib
import re
from pathlib import Path

import pytest

from kvstore.blocks.digest import SHARD_COUNT_MAX, empty_digests, pack_digests, record_hash, record_hashes, toggle
from kvstore.config import DoorConfig
from kvstore.control.directory import HELPERS_MAX, NODES_MAX
from kvstore.control.events import WATCHERS_MAX
from kvstore.control.prefix import LOCATIONS_MAX
from kvstore.control.wire import LANES_MAX
from kvstore.node.listing import BLOCKS_MAX
from kvstore.node.outgoing import CREDITS_MAX
from kvstore.observe.events import REPORTED_MAX
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX, STREAMS_PER_CONNECTION_MAX
from kvstore.rpc.status import STATUS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()
KEY = bytes(range(16))


def test_the_hash_of_a_record() -> None:
    """The vector in the document, the code, and the document's words done by hand agree."""
    told = re.search(r"hash `0x([0-9a-f]{16})`", DOCUMENT)
    assert told is not None
    by_hand = hashlib.blake2b(KEY + b"\x02" + b"\x01\x00" + b"\x04\x00", digest_size=8).digest()
    assert int(told[1], 16) == int.from_bytes(by_hand, "little") == record_hash(KEY, 2, 1, 4)


def test_digests_are_the_xor_of_hashes() -> None:
    """Bucket by bucket, in any order; toggling again takes records out; the wire form is little-endian."""
    keys = [bytes([i % 3]) + bytes([i]) * 15 for i in range(30)]
    digests = empty_digests()
    toggle(digests, keys, 2, 0, 1)
    for bucket in range(256):
        expected = 0
        for key in keys:
            if key[0] == bucket:
                expected ^= record_hash(key, 2, 0, 1)
        assert int(digests[bucket]) == expected
    assert record_hashes(keys, 2, 0, 1).tolist() == [record_hash(key, 2, 0, 1) for key in keys]
    assert pack_digests(digests)[8:16] == int(digests[1]).to_bytes(8, "little")
    toggle(digests, keys[::-1], 2, 0, 1)
    assert not digests.any()


def test_the_table_of_errors() -> None:
    """Every class stands beside its status, and no other."""
    told = {
        name: status
        for status, names in re.findall(r"^\| `([A-Z_]+)` \| (.*) \|$", DOCUMENT, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }
    assert told == {cls.__name__: code.name for cls, code in STATUS.items()}


@pytest.mark.parametrize(
    ("what", "bound"),
    [
        ("keys of one message", KEYS_PER_MESSAGE_MAX),
        ("blocks of one `ListBlocks`", BLOCKS_MAX),
        ("calls at once over one connection", STREAMS_PER_CONNECTION_MAX),
        ("connections of one address", DoorConfig().connections_max),
        ("calls at once of one tenant", DoorConfig().calls_max),
        ("shard count", SHARD_COUNT_MAX),
        ("locations of one `MatchReply`", LOCATIONS_MAX),
        ("registered nodes", NODES_MAX),
        ("lanes, tiers of a heartbeat", LANES_MAX),
        ("helpers of one `MatchReply`", HELPERS_MAX),
        ("events of a heartbeat", REPORTED_MAX),
        ("watchers (`Watch`) of a control plane", WATCHERS_MAX),
        ("credits of one transfer that are not settled", CREDITS_MAX),
    ],
)
def test_the_limits(what: str, bound: int) -> None:
    """The document's figures are those of the code."""
    assert re.search(rf"^\| {re.escape(what)}.* (?:\||`door\.\w+`,) {bound:,} ", DOCUMENT, re.MULTILINE)
