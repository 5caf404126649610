"""Everything that reads bytes or text which others have made: on disk, in files of configuration, in tokens."""

import base64
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from kvstore.blocks.keys import chain, unpack_keys
from kvstore.blocks.namespace import Namespace
from kvstore.cli.archive import START_BYTES, Header, text_bytes
from kvstore.cli.archive import read_header as read_archive_header
from kvstore.cli.tokens import add_token
from kvstore.client.aio import _ticket as read_handoff_ticket
from kvstore.client.matching import Locations, Match
from kvstore.config import Config
from kvstore.control.page.search import read_search
from kvstore.errors import InvalidInput, KVStoreError
from kvstore.fabric.ucx_address import sealed, unsealed
from kvstore.node.storage.batch import SlabRecord
from kvstore.node.storage.clock import Anchor
from kvstore.node.storage.format import (
    SlabHeader,
    pack_slab_header,
    pack_slot_header,
    parse_slab_header,
    parse_slot_header,
    slot_header_bytes,
)
from kvstore.node.storage.index_records import pack_anchor, pack_label, unpack_anchor, unpack_label
from kvstore.node.storage.records import pack_entry
from kvstore.node.storage.sealed import seal_json, unseal_json
from kvstore.pb import control_pb2, node_pb2
from kvstore.rpc.tokens import digest_of, expect_secret, new_secret, read_tokens
from kvstore.rpc.transfer_tickets import Key, sign
from kvstore.rpc.transfer_tickets import read as read_transfer_ticket
from tests.cluster import LAYOUT
from tests.node.storage.small_device import entry

CONFIG = """
[control]
listen = "127.0.0.1:7400"
[node]
dram_bytes = 1073741824
roles = ["prefill"]
[node.compute]
device = "lo"
[door]
calls_per_s = 5
[namespaces."llama-*"]
ttl_ms = 1000
"""


@dataclass(frozen=True)
class Parser:
    """read: raises nothing but KVStoreError. good: what it accepts."""

    name: str
    read: Callable[[bytes], object]
    good: bytes


def parsers(folder: Path) -> list[Parser]:
    """folder: for those that read files."""
    tokens = folder / "tokens.toml"
    add_token(tokens, "acme", tenant="acme", days=5)
    add_token(tokens, "anna", admin="read")
    archive = Header(Namespace.of("m", LAYOUT), LAYOUT)
    prompt = chain(Namespace.of("m", LAYOUT).id, np.arange(200, dtype=np.uint32), LAYOUT.block_tokens)
    match = Match(chain=prompt, blocks=1, locations=Locations.of(control_pb2.MatchReply()), partial=False)
    handoff = node_pb2.HandoffTicket(tickets=[bytes(16)], node={"node_id": "a", "grpc": "127.0.0.1:1"})
    return [
        Parser("slot header", parse_slot_header, pack_slot_header(entry(3)).tobytes()),
        Parser("body of a slot header", lambda raw: parse_slot_header(_slot_header(raw)), pack_entry(entry(3))),
        Parser("slot header's length", slot_header_bytes, pack_slot_header(entry(3)).tobytes()),
        Parser("slab header", parse_slab_header, pack_slab_header(SlabHeader(bytes(16), 1, 8192, "acme")).tobytes()),
        Parser("label in the index", lambda raw: unpack_label(raw, 1), pack_label(SlabRecord(8192, "acme", 4), 1)),
        Parser("clock in the index", unpack_anchor, pack_anchor(Anchor(1, 2, 3, "boot"))),
        Parser("manifest", unseal_json, seal_json([{"model": "m"}]).encode()),
        Parser("configuration", _from_file(folder / "config.toml", Config.load), CONFIG.encode()),
        Parser("tokens", _from_file(tokens, lambda path: read_tokens(str(path))), tokens.read_bytes()),
        Parser("token", lambda raw: expect_secret(raw.decode("latin-1"), "x"), new_secret().encode()),
        Parser("token's digest", lambda raw: digest_of(raw.decode("latin-1")), new_secret().encode()),
        Parser("transfer ticket", read_transfer_ticket, sign(Key(7, bytes(32)), "prefill-1", 5)),
        Parser(
            "handoff ticket",
            lambda raw: read_handoff_ticket(raw.decode("latin-1")),
            base64.urlsafe_b64encode(handoff.SerializeToString()),
        ),
        Parser("match", lambda raw: Match.from_json(raw.decode("latin-1")), match.to_json().encode()),
        Parser("keys", unpack_keys, bytes(64)),
        Parser("search", lambda raw: read_search(_json(raw)), json.dumps({"keys": ["00" * 16]}).encode()),
        Parser("address of a fabric", unsealed, sealed(bytes(range(100)))),
        Parser("start of an exported file", lambda raw: text_bytes(raw[:START_BYTES]), archive.pack()),
        Parser("header of an exported file", read_archive_header, archive.pack()),
    ]


def _slot_header(body: bytes) -> bytes:
    """Around any body, with a checksum that is right: as a hand that means harm would make it."""
    raw = struct.pack("<8sII", b"KVSLOT\r\n", 1, len(body))
    return raw + xxhash.xxh3_64_intdigest(raw + body).to_bytes(8, "little") + body


def _from_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def reading(raw: bytes) -> object:
        path.write_bytes(raw)
        path.chmod(0o600)
        return read(path)

    return reading


def _json(raw: bytes) -> object:
    """As the page does."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"no JSON: {error}") from error


def refuses_or_reads(parser: Parser, raw: bytes) -> bool:
    """Whether it was read. Raises what is no answer."""
    try:
        parser.read(raw)
    except KVStoreError:
        return False
    return True
