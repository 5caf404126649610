"""Exported files: written whole or not at all, and read block by block, each verified."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiofiles
import aiofiles.os
import numpy as np

from kvstore.cli.archive import (
    BLOCK,
    END,
    END_BYTES,
    START_BYTES,
    TAG_BYTES,
    ArchivedBlock,
    Bytes,
    Header,
    Seal,
    read_header,
    text_bytes,
)
from kvstore.errors import ChecksumMismatch, InvalidInput, KVStoreError

_OWNER_ALONE = 0o600


class Archive:
    """A file that is being written. Belongs to the event loop."""

    def __init__(self, file: Any, header: Header) -> None:
        self._file = file
        self._header = header
        self._seal = Seal()
        self.written_bytes = 0

    async def begin(self) -> None:
        await self._write(self._header.pack())

    async def add(self, block: ArchivedBlock, content: Bytes) -> None:
        """content: all bytes of the block."""
        names = await asyncio.to_thread(self._names, block, content)
        await self._write(names)
        await self._write(content)
        self._seal.blocks += 1

    def _names(self, block: ArchivedBlock, content: Bytes) -> bytes:
        return self._header.pack_names(block, self._header.checksums(content))

    async def _write(self, raw: bytes | Bytes) -> None:
        await asyncio.to_thread(self._seal.add, raw)
        await self._file.write(raw)
        self.written_bytes += len(raw)

    async def end(self) -> bytes:
        """Writes the end mark; answers the digest."""
        raw = self._seal.pack()
        await self._file.write(raw)
        self.written_bytes += len(raw)
        return self._seal.digest


@asynccontextmanager
async def written(path: Path, header: Header) -> AsyncIterator[Archive]:
    """A new file, which takes its name once the block has ended well and it is on stable storage; what there was under
    the name stays until then. Else nothing is left of it. Readable by its owner alone. Raises InvalidInput."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    with _file_errors(path):
        try:
            async with aiofiles.open(fresh, "xb", opener=_open_private) as file:
                archive = Archive(file, header)
                await archive.begin()
                yield archive
                await file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            await aiofiles.os.replace(fresh, path)
            await asyncio.to_thread(_sync, path.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                await aiofiles.os.unlink(fresh)


class Opened:
    """A file that is read, from its header on. Belongs to the event loop."""

    def __init__(self, path: Path, file: Any, header: Header, raw: bytes) -> None:
        self.header = header
        self._path = path
        self._file = file
        self._raw = raw

    def expect_seed(self, seed: bytes) -> None:
        """As `Header.expect_seed`; the error names the file."""
        with _named(self._path):
            self.header.expect_seed(seed)

    async def blocks(self, seal: Seal | None = None) -> AsyncIterator[tuple[ArchivedBlock, Bytes]]:
        """Every block, from the first one on, with bytes that are what was exported; then the end mark, if it is right.
        The array is used again for the next block.

        seal: gathers the digest, which is compared then. Raises ChecksumMismatch for a file that is torn or damaged."""
        await self._file.seek(len(self._raw))
        content = np.empty(self.header.layout.block_bytes, np.uint8)
        if seal is not None:
            seal.add(self._raw)
        count = 0
        while (tag := await self._read(TAG_BYTES, count)) == BLOCK:
            names = tag + await self._read(self.header.names_bytes - TAG_BYTES, count)
            if await self._file.readinto(content) != len(content):
                raise self._torn(count)
            yield await asyncio.to_thread(self._verified, names, content, seal), content
            count += 1
        if tag != END:
            raise ChecksumMismatch(f"{self._path}: damaged after {count:,} blocks")
        end = tag + await self._read(END_BYTES - TAG_BYTES, count)
        if await self._file.read(1):
            raise ChecksumMismatch(f"{self._path}: it goes on after its end")
        if seal is not None:
            with self._placed(count):
                seal.blocks = count
                seal.expect(end)

    def _verified(self, raw: bytes, content: Bytes, seal: Seal | None) -> ArchivedBlock:
        with self._placed(seal.blocks if seal is not None else None):
            block, checksums = self.header.read_names(raw)
            if self.header.checksums(content) != checksums:
                raise ChecksumMismatch(f"the bytes of block {block.key.hex()} are not those that were exported")
        if seal is not None:
            seal.add(raw)
            seal.add(content)
            seal.blocks += 1
        return block

    @contextlib.contextmanager
    def _placed(self, count: int | None) -> Any:
        try:
            yield
        except ChecksumMismatch as error:
            after = f", after {count:,} blocks" if count is not None else ""
            raise ChecksumMismatch(f"{self._path}: {error}{after}") from error

    async def _read(self, length: int, count: int) -> bytes:
        raw: bytes = await self._file.read(length)
        if len(raw) != length:
            raise self._torn(count)
        return raw

    def _torn(self, count: int) -> ChecksumMismatch:
        return ChecksumMismatch(f"{self._path}: torn: it ends after {count:,} blocks, without an end mark")


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Opened]:
    """A file, with its header read. Raises InvalidInput for a file of another kind or none, VersionMismatch,
    ChecksumMismatch, TooLarge, UnsupportedLayout."""
    with _file_errors(path):
        async with aiofiles.open(path, "rb") as file:
            with _named(path):
                start = await file.read(START_BYTES)
                raw = start + await file.read(text_bytes(start))
                header = read_header(raw)
            yield Opened(path, file, header, raw)


async def verified(file: Opened, looked_at: Callable[[int], None]) -> Seal:
    """Reads all of it, and stores nothing. looked_at: told how many bytes, now and then. Raises ChecksumMismatch."""
    seal = Seal()
    async for _, content in file.blocks(seal):
        looked_at(len(content))
    return seal


@contextlib.contextmanager
def _named(path: Path) -> Any:
    """Errors of what a file says name it."""
    try:
        yield
    except KVStoreError as error:
        raise type(error)(f"{path}: {error}") from error


@contextlib.contextmanager
def _file_errors(path: Path) -> Any:
    try:
        yield
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}") from error


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, _OWNER_ALONE)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
