"""What a fabric accepts as a buffer."""

from kvstore.errors import BufferMismatch
from kvstore.fabric.base import Buffer


def on_device(buffer: Buffer) -> bool:
    """True for device memory (`__cuda_array_interface__`)."""
    return hasattr(buffer, "__cuda_array_interface__")


def host_only_view(buffer: Buffer, writable: bool, refusal: str) -> memoryview:
    """`host_view`, for a fabric that moves host memory only. Raises BufferMismatch with `refusal` for device memory."""
    if on_device(buffer):
        raise BufferMismatch(refusal)
    return host_view(buffer, writable)


def host_view(buffer: Buffer, writable: bool) -> memoryview:
    """The bytes of a host buffer, without a copy. Raises BufferMismatch when it cannot be sent (or received into)."""
    try:
        view = memoryview(buffer)
    except TypeError as error:
        raise BufferMismatch(f"{type(buffer).__name__} has no buffer protocol") from error
    if not view.c_contiguous:
        raise BufferMismatch(f"a contiguous buffer is needed, not strides {view.strides} of shape {view.shape}")
    if not view.nbytes:
        raise BufferMismatch("an empty buffer carries no message")
    if writable and view.readonly:
        raise BufferMismatch("a read-only buffer cannot receive")
    return view.cast("B")
