"""The format of an exported file: what its parts are, packed and read. No I/O. docs/export.md specifies it.

header   block   block   …   end
"""

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from kvstore.blocks.keys import KEY_BYTES
from kvstore.blocks.layout import CHECKSUM_BYTES, Layout, layout_from_fields
from kvstore.blocks.namespace import Namespace
from kvstore.blocks.salt import seed_check
from kvstore.errors import ChecksumMismatch, InvalidInput, SaltMismatch, TooLarge, VersionMismatch

MAGIC = b"KVEXPORT"
VERSION = 1
HEADER_BYTES_MAX = 64 * 1024
BLOCK_BYTES_MAX = 2**30
TAG_BYTES = 4
BLOCK, END = b"BLCK", b"ENDS"
_START = struct.Struct("<8sII")
_NAMES = struct.Struct("<4s16s16sIHH")
_END = struct.Struct("<4sQ")
START_BYTES = _START.size
DIGEST_BYTES = 32
END_BYTES = _END.size + DIGEST_BYTES
_NO_KEY = bytes(KEY_BYTES)
Bytes = npt.NDArray[np.uint8]


class ArchivedBlock(NamedTuple):
    """The names of one block. parent: b"" for a root, and where it is not known; depth: blocks before it in its chain.
    rank, shards: which part of the block it is, of how many."""

    key: bytes
    parent: bytes
    depth: int
    rank: int
    shards: int

    def follows(self, other: "ArchivedBlock") -> bool:
        """Whether it is the next block of a chain."""
        shard = (self.rank, self.shards) == (other.rank, other.shards)
        return shard and (self.parent, self.depth) == (other.key, other.depth + 1)


@dataclass(frozen=True, slots=True)
class Header:
    """Whose blocks a file has. seed_check: of the seed that their keys begin with; empty where they are not salted."""

    namespace: Namespace
    layout: Layout
    seed_check: bytes = b""

    def pack(self) -> bytes:
        """All of it, with its checksum."""
        named = asdict(self.namespace)
        del named["layout_fingerprint"]  # follows from the layout
        said = {"namespace_id": self.namespace.id.hex(), "namespace": named, "layout": asdict(self.layout)}
        said |= {"seed_check": self.seed_check.hex()} if self.seed_check else {}
        text = json.dumps(said).encode()
        packed = _START.pack(MAGIC, VERSION, len(text)) + text
        return packed + _hash(packed)

    def expect_seed(self, seed: bytes) -> None:
        """Raises SaltMismatch for another seed than that of the file's keys. seed: empty where keys are not salted."""
        if seed_check(seed) != self.seed_check:
            raise SaltMismatch(
                "its keys were made with another salt than this cluster's, or one of the two has none: nobody would"
                " find these blocks, and without their prompts no keys can be made anew"
            )

    @property
    def names_bytes(self) -> int:
        """Of a block's part before its bytes, the tag included."""
        return _NAMES.size + self.layout.checksum_bytes + CHECKSUM_BYTES

    def pack_names(self, block: ArchivedBlock, checksums: bytes) -> bytes:
        """A block's part before its bytes. checksums: of its granules."""
        assert len(checksums) == self.layout.checksum_bytes
        names = _NAMES.pack(BLOCK, block.key, block.parent or _NO_KEY, block.depth, block.rank, block.shards)
        return names + checksums + _hash(names + checksums)

    def read_names(self, raw: bytes) -> tuple[ArchivedBlock, bytes]:
        """A block's names, and the checksums of its granules. Raises ChecksumMismatch."""
        told = raw[:-CHECKSUM_BYTES]
        if _hash(told) != raw[-CHECKSUM_BYTES:]:
            raise ChecksumMismatch("the names of a block are damaged")
        _, key, parent, depth, rank, shards = _NAMES.unpack_from(told)
        return ArchivedBlock(key, parent if parent != _NO_KEY else b"", depth, rank, shards), told[_NAMES.size :]

    def checksums(self, block: Bytes) -> bytes:
        """Of a block's granules."""
        step = self.layout.granule_bytes
        return b"".join(_hash(block[at : at + step].data) for at in range(0, len(block), step))


def text_bytes(start: bytes) -> int:
    """How many bytes a header has after its first START_BYTES. Raises InvalidInput for a file of another kind,
    VersionMismatch, TooLarge."""
    if len(start) < START_BYTES or start[: len(MAGIC)] != MAGIC:
        raise InvalidInput("it is no file that `kvstore admin export` has written")
    _, version, length = _START.unpack(start)
    if version != VERSION:
        raise VersionMismatch(f"its format is version {version}, this release reads version {VERSION}")
    if length > HEADER_BYTES_MAX:
        raise TooLarge(f"its header has {length} bytes, more than {HEADER_BYTES_MAX}")
    return int(length) + CHECKSUM_BYTES


def read_header(raw: bytes) -> Header:
    """Raises ChecksumMismatch; InvalidInput for a namespace or a layout that is none, UnsupportedLayout, TooLarge."""
    if _hash(raw[:-CHECKSUM_BYTES]) != raw[-CHECKSUM_BYTES:]:
        raise ChecksumMismatch("its header is damaged")
    try:
        said = json.loads(raw[START_BYTES:-CHECKSUM_BYTES])
        layout = layout_from_fields(**said["layout"])
        namespace = Namespace(layout_fingerprint=layout.fingerprint, **said["namespace"])
        named, check = bytes.fromhex(said["namespace_id"]), bytes.fromhex(said.get("seed_check", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"its header says no namespace: {error}") from error
    if named != namespace.id:
        raise InvalidInput(f"its namespace has the id {namespace.id.hex()}, and it says {named.hex()}")
    if layout.block_bytes > BLOCK_BYTES_MAX:
        raise TooLarge(f"its blocks have {layout.block_bytes} bytes, more than {BLOCK_BYTES_MAX}")
    return Header(namespace, layout, check)


class Seal:
    """The end of a file: how many blocks came before, and the digest of everything."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self.blocks = 0

    def add(self, raw: bytes | Bytes) -> None:
        """What is in the file, in order. Slow for much: a thread's work."""
        self._digest.update(raw if isinstance(raw, bytes) else raw.data)

    def pack(self) -> bytes:
        """The end; nothing may be added any more."""
        told = _END.pack(END, self.blocks)
        self._digest.update(told)
        return told + self._digest.digest()

    def expect(self, raw: bytes) -> None:
        """Raises ChecksumMismatch unless this is the end of what was added."""
        if raw != self.pack():
            raise ChecksumMismatch("its digest or its count of blocks is not that of what is in it")

    @property
    def digest(self) -> bytes:
        """Of all that was added."""
        return self._digest.digest()


def _hash(raw: bytes | memoryview) -> bytes:
    return xxhash.xxh3_64_intdigest(raw).to_bytes(CHECKSUM_BYTES, "little")
