"""The one table between our errors and gRPC status codes.

An error travels as its status code plus its class name in trailing metadata, so that the caller gets the same class
back; in a stream also as its last message (`kvstore.rpc.stream`).
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass

from kvstore import errors as e
from kvstore.pb import types_pb2
from kvstore.rpc import PROTOCOL_VERSION

STATUS: dict[type[e.KVStoreError], grpc.StatusCode] = {
    e.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    e.BufferMismatch: grpc.StatusCode.INVALID_ARGUMENT,
    e.UnsupportedLayout: grpc.StatusCode.UNIMPLEMENTED,
    e.UnknownNamespace: grpc.StatusCode.NOT_FOUND,
    e.TooLarge: grpc.StatusCode.OUT_OF_RANGE,
    e.ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    e.VersionMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    e.SaltMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    e.PermissionRefused: grpc.StatusCode.PERMISSION_DENIED,
    e.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    e.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    e.InUse: grpc.StatusCode.FAILED_PRECONDITION,
    e.Refused: grpc.StatusCode.RESOURCE_EXHAUSTED,
    e.Unavailable: grpc.StatusCode.UNAVAILABLE,
    e.ControlUnavailable: grpc.StatusCode.UNAVAILABLE,
    e.NodeUnavailable: grpc.StatusCode.UNAVAILABLE,
    e.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    e.PeerLost: grpc.StatusCode.ABORTED,
    e.BlocksMissing: grpc.StatusCode.NOT_FOUND,
    e.StaleGeneration: grpc.StatusCode.ABORTED,
    e.HandoffLost: grpc.StatusCode.ABORTED,
    e.ChecksumMismatch: grpc.StatusCode.DATA_LOSS,
    e.DeviceFailed: grpc.StatusCode.INTERNAL,
    e.DeviceFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    e.LeaseLost: grpc.StatusCode.ABORTED,
    e.SessionLost: grpc.StatusCode.UNAUTHENTICATED,
    e.TicketInvalid: grpc.StatusCode.NOT_FOUND,
    e.Closed: grpc.StatusCode.CANCELLED,
    e.FabricUnavailable: grpc.StatusCode.UNAVAILABLE,
}

_NAME_KEY = "kvstore-error"
_RETRY_KEY = "kvstore-retry-after-ms"
_TEXT_BYTES_MAX = 2000
"""gRPC refuses a status of more than 8 KiB, and writes what is not ASCII in three characters per byte."""

_WRITE_LOST = "Internal error from Core"
"""What gRPC says of a write that the end of its stream overtook (grpc/grpc issue 36066)."""

_BY_NAME = {cls.__name__: cls for cls in STATUS}
_BY_CODE: dict[grpc.StatusCode, type[e.KVStoreError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: e.InvalidInput,
    grpc.StatusCode.RESOURCE_EXHAUSTED: e.TooLarge,  # gRPC's own: a message over the limit
    grpc.StatusCode.DEADLINE_EXCEEDED: e.DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: e.VersionMismatch,
    grpc.StatusCode.PERMISSION_DENIED: e.PermissionRefused,
    grpc.StatusCode.UNAUTHENTICATED: e.Unauthenticated,
}
_UNREACHABLE = (None, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)


def from_rpc(error: grpc.RpcError, unavailable: type[e.Unavailable] = e.Unavailable, who: str = "") -> e.KVStoreError:
    """Our error for a failed call. `unavailable` is the class for a process that cannot be reached."""
    trailing = dict(error.trailing_metadata() or ()) if isinstance(error, grpc.aio.AioRpcError) else {}
    code = error.code() if hasattr(error, "code") else None
    details = (error.details() if hasattr(error, "details") else "") or str(code)
    message = f"{who}: {details}" if who else details
    named = _named(str(trailing.get(_NAME_KEY, "")), message, int(str(trailing.get(_RETRY_KEY, "100"))))
    if named is not None:
        return named
    if code in _UNREACHABLE or (code is grpc.StatusCode.INTERNAL and details == _WRITE_LOST):
        return unavailable(message)
    return _BY_CODE.get(code, e.KVStoreError)(message)


def from_failure(failure: types_pb2.Failure, who: str = "") -> e.KVStoreError:
    """The error that the peer put into a stream as its last message."""
    message = f"{who}: {failure.text}" if who else failure.text
    return _named(failure.error, message, failure.retry_after_ms) or e.KVStoreError(message)


def _named(name: str, message: str, retry_after_ms: int) -> e.KVStoreError | None:
    cls = _BY_NAME.get(name)
    if cls is e.Refused:
        return e.Refused(message, retry_after_s=retry_after_ms / 1000)
    return None if cls is None else cls(message)


def check_version(caller: types_pb2.Caller) -> None:
    """Raises VersionMismatch unless the caller speaks this process's protocol."""
    if caller.protocol_version != PROTOCOL_VERSION:
        raise e.VersionMismatch(
            f"the caller speaks protocol {caller.protocol_version}, this process {PROTOCOL_VERSION}: "
            "install the same kvstore release on both sides"
        )


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: e.KVStoreError) -> NoReturn:
    """Ends a call with the error's status."""
    told = _failure(error)
    metadata = [(_NAME_KEY, told.error)]
    if told.retry_after_ms:
        metadata.append((_RETRY_KEY, str(told.retry_after_ms)))
    await context.abort(STATUS.get(type(error), grpc.StatusCode.INTERNAL), told.text, tuple(metadata))


def last_words(method: str, error: e.KVStoreError) -> Any:
    """The last message of a stream that an error ends before it has begun; None where its messages have none.

    method: as gRPC names it, /kvstore.v1.Node/Load.
    """
    answers = Default().FindMethodByName(method[1:].replace("/", ".")).output_type
    return GetMessageClass(answers)(failure=_failure(error)) if "failure" in answers.fields_by_name else None


def _failure(error: e.KVStoreError) -> types_pb2.Failure:
    return types_pb2.Failure(
        error=type(error).__name__,
        text=str(error).encode()[:_TEXT_BYTES_MAX].decode(errors="ignore"),
        retry_after_ms=int(error.retry_after_s * 1000) if isinstance(error, e.Refused) else 0,
    )


Method = TypeVar("Method", bound=Callable[..., Any])


def unary(method: Callable[..., Awaitable[Any]]) -> Any:
    """A unary servicer method whose typed errors become statuses, and whose caller's version is checked."""

    @wraps(method)
    async def call(self: Any, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            check_version(request.caller)
            return await method(self, request, context)
        except e.KVStoreError as error:
            await abort(context, error)

    return call


def answering(method: Callable[..., AsyncIterator[Any]]) -> Any:
    """The same for a method that answers one request with a stream. Its caller writes nothing, so no status is lost."""

    @wraps(method)
    async def call(self: Any, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            check_version(request.caller)
            async for message in method(self, request, context):
                yield message
        except e.KVStoreError as error:
            await abort(context, error)

    return call


def streaming(reply: Callable[..., Any]) -> Callable[[Callable[..., AsyncIterator[Any]]], Any]:
    """The same for a method that answers with a stream of `reply`.

    The error is its last message too: a status may be lost to the caller that is writing when the stream ends.
    """

    def decorate(method: Callable[..., AsyncIterator[Any]]) -> Any:
        @wraps(method)
        async def call(self: Any, requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                async for message in method(self, requests, context):
                    yield message
            except e.KVStoreError as error:
                yield reply(failure=_failure(error))
                await abort(context, error)

        return call

    return decorate
