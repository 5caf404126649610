"""Everything that reads bytes or text which others have made: on disk, in files of configuration, in tokens."""

import base64
import json
import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xxhash

from kvstore.blocks.keys import chain, unpack_keys
from kvstore.blocks.layout import CHECKSUM_BYTES
from kvstore.blocks.namespace import Namespace
from kvstore.cli.admin_prefix import read_namespace
from kvstore.cli.admin_prefix import read_tokens as read_prompt
from kvstore.cli.archive import START_BYTES, ArchivedBlock, Header, text_bytes
from kvstore.cli.archive import read_header as read_archive_header
from kvstore.cli.demo_sessions import read_trace
from kvstore.cli.tokens import add_token
from kvstore.client.aio import _ticket as read_handoff_ticket
from kvstore.client.matching import Locations, Match
from kvstore.config import Config
from kvstore.control.page.search import read_search
from kvstore.errors import InvalidInput, KVStoreError
from kvstore.fabric.sealed import sealed, unsealed
from kvstore.fabric.tcp_address import MARK, TcpAddress
from kvstore.fabric.ucx import MARK as UCX_MARK
from kvstore.node.storage.batch import SlabRecord
from kvstore.node.storage.clock import Anchor
from kvstore.node.storage.codec import decode_granule, encode
from kvstore.node.storage.entry import ZSTD_SHUFFLED
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


def parsers() -> list[Parser]:
    """All of them."""
    namespace = Namespace.of("m", LAYOUT)
    archive = Header(namespace, LAYOUT)
    names = archive.pack_names(ArchivedBlock(bytes(16), b"", 0, 0, 1), bytes(LAYOUT.checksum_bytes))
    named, length = {"model": "m", "layout": asdict(LAYOUT)}, archive.names_bytes
    granule = encode(np.zeros(512, np.uint8), 256, ZSTD_SHUFFLED).parts[0]
    prompt = chain(namespace.id, np.arange(200, dtype=np.uint32), LAYOUT.block_tokens)
    match = Match(chain=prompt, blocks=1, locations=Locations.of(control_pb2.MatchReply()), partial=False)
    handoff = node_pb2.HandoffTicket(tickets=[bytes(16)], node={"node_id": "a", "grpc": "127.0.0.1:1"})
    tcp_address = unsealed(MARK, TcpAddress(bytes(16), bytes(8), (("10.0.0.1", 5), ("fd00::7", 6))).encoded(), "TCP")
    trace = {"input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
    return [
        Parser("slot header", parse_slot_header, pack_slot_header(entry(3)).tobytes()),
        Parser("body of a slot header", lambda raw: parse_slot_header(_slot_header(raw)), pack_entry(entry(3))),
        Parser("slot header's length", slot_header_bytes, pack_slot_header(entry(3)).tobytes()),
        Parser("slab header", parse_slab_header, pack_slab_header(SlabHeader(bytes(16), 1, 8192, "acme")).tobytes()),
        Parser("label in the index", lambda raw: unpack_label(raw, 1), pack_label(SlabRecord(8192, "acme", 4), 1)),
        Parser("clock in the index", unpack_anchor, pack_anchor(Anchor(1, 2, 3, "boot"))),
        Parser("compressed granule", _granule, granule.tobytes()),
        Parser("manifest", unseal_json, seal_json([{"model": "m"}]).encode()),
        Parser("configuration", _from_file(Config.load), CONFIG.encode()),
        Parser("tokens", _from_file(lambda path: read_tokens(str(path))), _tokens()),
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
        Parser("address of a fabric", lambda raw: unsealed(UCX_MARK, raw, "UCX"), sealed(UCX_MARK, bytes(range(100)))),
        Parser("address of a TCP fabric", lambda raw: TcpAddress.decoded(sealed(MARK, raw)), tcp_address),
        Parser("start of an exported file", lambda raw: text_bytes(raw[:START_BYTES]), archive.pack()),
        Parser("header of an exported file", read_archive_header, archive.pack()),
        Parser("body of an exported file's header", _archive_header, archive.pack()[:-CHECKSUM_BYTES]),
        Parser("names of an exported block", lambda raw: archive.read_names(raw[:length].ljust(length)), names),
        Parser("namespace's file", _from_file(read_namespace), json.dumps(named).encode()),
        Parser("prompt's file", _from_file(read_prompt), b"[1, 2, 3]"),
        Parser("trace", lambda raw: list(read_trace(raw.decode("latin-1").splitlines())), json.dumps(trace).encode()),
    ]


def _slot_header(body: bytes) -> bytes:
    """Around any body, with a checksum that is right: as a hand that means harm would make it."""
    raw = struct.pack("<8sII", b"KVSLOT\r\n", 1, len(body))
    return raw + xxhash.xxh3_64_intdigest(raw + body).to_bytes(8, "little") + body


def _archive_header(body: bytes) -> Header:
    return read_archive_header(body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little"))


def _granule(raw: bytes) -> None:
    decode_granule(np.frombuffer(raw, np.uint8), ZSTD_SHUFFLED, np.empty(256, np.uint8))


def _tokens() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.toml"
        add_token(path, "acme", tenant="acme", days=5)
        add_token(path, "anna", admin="read")
        return path.read_bytes()


def _from_file(read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A file without a disk, which would take longest."""

    def reading(raw: bytes) -> object:
        with os.fdopen(os.memfd_create("fuzz"), "wb", buffering=0) as file:
            file.write(raw)
            os.fchmod(file.fileno(), 0o600)
            return read(Path(f"/proc/self/fd/{file.fileno()}"))

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
