"""Something around each call that a server serves: a clock, a span, a guard."""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, aclosing
from inspect import iscoroutine
from typing import Any

from kvstore.errors import KVStoreError
from kvstore.rpc.status import abort, last_words
from kvstore.rpc.wrapping import Handler, Wrapping, behaviour, of_kind


class Around(Wrapping):
    """For one server. Belongs to the event loop."""

    def around(self, rpc: str, context: Any) -> AbstractContextManager[None]:
        """Entered when a call begins and left when it ends, however it does. rpc: service and call (Node/Load). A
        KVStoreError that it raises is the call's answer."""
        raise NotImplementedError

    def still(self, rpc: str, context: Any) -> None:
        """Before each message of a stream; a KVStoreError that it raises ends the call, as its answer."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        rpc = method.rpartition(".")[2]
        inner = behaviour(handler)

        async def unary(request: Any, context: Any) -> Any:
            try:
                with self.around(rpc, context):
                    return await inner(request, context)
            except KVStoreError as error:
                await abort(context, error)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                with self.around(rpc, context):
                    answering = inner(request, context)
                    if iscoroutine(answering):  # it writes its messages itself, as health's does
                        await answering
                        return
                    async with aclosing(answering) as messages:
                        async for message in messages:
                            self.still(rpc, context)
                            yield message
            except KVStoreError as error:
                if (failure := last_words(method, error)) is not None:
                    yield failure
                await abort(context, error)

        return of_kind(handler, unary, stream, handler.request_deserializer)
