"""Exceptions, named by what the caller can do about them.

Every error that a user, a peer or a device can cause is one of these; a failed `assert` or any other exception is a bug
in kvstore. A miss is no error: see `kvstore.blocks.state.Outcome`. `kvstore.rpc.status` maps each class to one gRPC
status code and back.
"""


class KVStoreError(Exception):
    """Base of all errors of this package."""


# ---- mend the call ---------------------------------------------------------------------------------------------------


class InvalidInput(KVStoreError):
    """The call can never succeed as it is. Nothing was changed."""


class BufferMismatch(InvalidInput):
    """A buffer is too small, not contiguous where it must be, read-only, or on the wrong device."""


class UnsupportedLayout(InvalidInput):
    """The layout is well formed but not supported yet (hybrid groups, different TP sizes)."""


class UnknownNamespace(InvalidInput):
    """The namespace was never opened here, or its layout differs from the one that it was opened with."""


class TooLarge(InvalidInput):
    """The request exceeds a bound that no waiting will lift: the tier's capacity, a batch limit."""


class ConfigError(InvalidInput):
    """A configuration value is missing, unknown or out of range."""


class VersionMismatch(KVStoreError):
    """The two sides speak different protocol versions: upgrade the older one."""


class SaltMismatch(KVStoreError):
    """The two sides salt the keys of blocks with different secrets, so nothing of one matches at the other. Restart all
    servers with the same file of tokens."""


class PermissionRefused(KVStoreError):
    """The credential does not allow the call, or the session is not the caller's."""


class Unauthenticated(PermissionRefused):
    """The call needs a token and brought none that holds: show one (`--token-file`, `door.token_file`)."""


class Forbidden(PermissionRefused):
    """Who calls is known, and this is not for him: another certificate or another token may do it."""


class InUse(KVStoreError):
    """Somebody who lives has it: end his use of it first. Nothing was changed."""


# ---- wait and try again ----------------------------------------------------------------------------------------------


class Refused(KVStoreError):
    """No room now. `retry_after_s` says when another try is worth it."""

    def __init__(self, message: str, retry_after_s: float = 0.1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(KVStoreError):
    """A process cannot be reached; the call may be repeated."""


class ControlUnavailable(Unavailable):
    """The control plane cannot be reached. Local blocks stay readable."""


class NodeUnavailable(Unavailable):
    """The node cannot be reached."""


class DeadlineExceeded(KVStoreError):
    """The call did not finish in its time; what it had begun is undone or ends with its lease."""


# ---- read it from elsewhere, or compute it again ---------------------------------------------------------------------


class PeerLost(KVStoreError):
    """The other side of a transfer died, was closed or made no progress; its pending operations have all ended."""


class BlocksMissing(KVStoreError):
    """Blocks that were asked for are not there any more: evicted, expired or never stored. Compute them."""


class StaleGeneration(KVStoreError):
    """The slot was given to another block, or its node restarted, while it was being read."""


class HandoffLost(KVStoreError):
    """The prefill side gave the handoff up: it aborted, or its process or its lease ended. Its ticket is void."""


class ChecksumMismatch(KVStoreError):
    """The bytes that arrived are not the bytes that were stored."""


# ---- a disk ----------------------------------------------------------------------------------------------------------


class DeviceFailed(KVStoreError):
    """A storage device failed an operation: an I/O error, a device that went read-only or away.

    error_number: the system's `errno`, 0 where there is none."""

    def __init__(self, message: str, error_number: int = 0) -> None:
        super().__init__(message)
        self.error_number = error_number


class DeviceFull(DeviceFailed):
    """No room: the file system is full, or below the free space that it must keep."""


# ---- begin anew ------------------------------------------------------------------------------------------------------


class LeaseLost(KVStoreError):
    """The lease of an unfinished put has expired or was revoked; nothing of it became readable."""


class SessionLost(KVStoreError):
    """The node does not know this session (it restarted): attach again."""


class TicketInvalid(KVStoreError):
    """The ticket is unknown, used already, or past its deadline."""


class Closed(KVStoreError):
    """The object was closed by its owner."""


class FabricUnavailable(KVStoreError):
    """No data plane for this transport: an extra is not installed, or UCX cannot use the device named."""
