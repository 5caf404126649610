"""One question that UCXX's Python cannot ask: which transports an endpoint uses (`ucp_ep_query`, ucp/api/ucp.h)."""

import ctypes
from functools import cache

_TRANSPORTS = 1 << 3  # UCP_EP_ATTR_FIELD_TRANSPORTS
_LANES_MAX = 32


class _Entry(ctypes.Structure):
    _fields_ = (("transport", ctypes.c_char_p), ("device", ctypes.c_char_p))


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("field_mask", ctypes.c_uint64),
        ("name", ctypes.c_char * 32),
        ("local_address", ctypes.c_char * 128),
        ("remote_address", ctypes.c_char * 128),
        ("entries", ctypes.POINTER(_Entry)),
        ("entries_count", ctypes.c_uint),
        ("entry_bytes", ctypes.c_size_t),
        ("user_data", ctypes.c_void_p),
    )


@cache
def _library() -> ctypes.CDLL:
    # The loader finds by its name what is loaded already; this never loads a second UCX.
    library = ctypes.CDLL("libucp.so.0")
    library.ucp_ep_query.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Attributes))
    return library


def transports(endpoint: int) -> set[str]:
    """Names of the transports of an open endpoint (`ucp_ep_h` as an integer), empty when UCX does not tell."""
    entries = (_Entry * _LANES_MAX)()
    attributes = _Attributes(
        field_mask=_TRANSPORTS, entries=entries, entries_count=_LANES_MAX, entry_bytes=ctypes.sizeof(_Entry)
    )
    if _library().ucp_ep_query(endpoint, ctypes.byref(attributes)) != 0:
        return set()
    return {entry.transport.decode() for entry in entries[: attributes.entries_count]}
