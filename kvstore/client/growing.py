"""Growing: a sequence that an engine goes on writing. Its blocks are stored as they fill, beside the engine's work."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.blocks.keys import Chain, token_buffer
from kvstore.client.buffers import KVBuffers
from kvstore.client.storing import StoreResult
from kvstore.client.threads import ended
from kvstore.errors import BufferMismatch, Closed, KVStoreError

_NOTHING = StoreResult(0, 0, 0, 0, 0)


class Growing:
    """Made by `AsyncClient.grow`. Belongs to the client's event loop.

    `append` tells of tokens whose KV is in the buffers; it never waits. KV of a full block must not change until the
    block is among `blocks_done`, or `close` has returned. What cannot be stored now (no room, the node is away) is
    tried again with the next block that fills, and by `close`: the engine never waits for it.
    """

    def __init__(
        self,
        chain_of: Callable[[npt.NDArray[np.uint32]], Chain],
        store: Callable[[Chain, int], Awaitable[StoreResult]],
        prompt: npt.NDArray[np.uint32],
        kv: KVBuffers,
        block_tokens: int,
        blocks_done: int,
    ) -> None:
        self._chain_of = chain_of
        self._store = store
        self._tokens = [prompt]
        self._count = prompt.size
        self._kv = kv
        self._block_tokens = block_tokens
        self._result = _NOTHING
        self._task: asyncio.Task[None] | None = None
        self._open = True
        self.blocks_done = blocks_done
        self.error: KVStoreError | None = None
        """Why the last try stored nothing."""
        self._begin()

    def __repr__(self) -> str:
        return f"Growing({self._count} tokens, {self.blocks_done} of {self._full_blocks} full blocks stored)"

    @property
    def _full_blocks(self) -> int:
        return self._count // self._block_tokens

    def append(self, tokens: Any) -> None:
        """More tokens, whose KV is in the buffers. Raises InvalidInput, BufferMismatch, Closed."""
        if not self._open:
            raise Closed("the sequence was closed")
        more = token_buffer(tokens).copy()
        if (self._count + more.size) // self._block_tokens > self._kv.blocks:
            raise BufferMismatch(
                f"the buffers hold {self._kv.blocks} blocks, {self._count + more.size} tokens need more"
            )
        before = self._full_blocks
        self._tokens.append(more)
        self._count += more.size
        if self._full_blocks > before:
            self._begin()

    async def close(self) -> StoreResult:
        """Stores what is left, once more where a try had failed; what of all blocks was stored, found present, or
        refused. May be called twice."""
        self._open = False
        await self._settled()
        self._begin()
        await self._settled()
        return self._result + StoreResult(0, 0, 0, self._full_blocks - self.blocks_done, 0)

    async def cancel(self) -> None:
        """Stores no more; the buffers are the caller's again when this returns."""
        self._open = False
        if self._task is not None:
            self._task.cancel()
            await ended([self._task])

    async def _settled(self) -> None:
        if self._task is not None:
            await asyncio.wait({self._task})

    def _begin(self) -> None:
        if self.blocks_done < self._full_blocks and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        """Until all that is full is stored, or a try has brought nothing."""
        while self.blocks_done < self._full_blocks:
            before = self.blocks_done, self._full_blocks
            self._tokens = [np.concatenate(self._tokens)]
            asked = self._chain_of(self._tokens[0][: self._full_blocks * self._block_tokens])
            try:
                result = await self._store(asked, self.blocks_done)
            except KVStoreError as error:
                self.error = error
            else:
                self.error = None
                self.blocks_done = len(asked) - result.refused
                self._result += dataclasses.replace(result, refused=0)
            if (self.blocks_done, self._full_blocks) == before:
                return
