"""Waiting for a condition of another process or task: polled, because nobody there can tell us; never for ever."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from kvstore.errors import NodeUnavailable

Value = TypeVar("Value")


async def eventually(condition: Callable[[], Any], deadline_s: float = 5.0) -> Any:
    """The condition's value once it is true (it may be a coroutine function). Fails after the deadline."""
    async with asyncio.timeout(deadline_s):
        while True:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.005)


async def once_reached(call: Callable[[], Awaitable[Value]], deadline_s: float = 5.0) -> Value:
    """The call's answer once its node can be reached: a channel waits a moment before it connects again."""
    async with asyncio.timeout(deadline_s):
        while True:
            try:
                return await call()
            except NodeUnavailable:
                await asyncio.sleep(0.01)
