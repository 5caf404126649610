"""The node's slabs, mapped into the engine's process.

Descriptors come over a unix socket and are mapped when first needed. A reader checks the slot's generation word *after*
it has copied: if it moved, the bytes may be another block's.
"""

import array
import mmap
import os
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvstore import pages
from kvstore.blocks.state import SLAB_CLOSED
from kvstore.client import cuda
from kvstore.errors import KVStoreError, NodeUnavailable, PermissionRefused, SessionLost, StaleGeneration
from kvstore.pb import node_pb2

_REPLY_BYTES_MAX = 4096


@dataclass(slots=True, eq=False)
class Slab:
    """data: the slab's bytes. generations: one word per slot, written by the node alone."""

    data: npt.NDArray[np.uint8]
    generations: npt.NDArray[np.uint64]
    slot_bytes: int
    _registered: bool = False

    def register(self) -> None:
        """Page-locks the slab for CUDA, once, so that copies to and from a device run at the bus's speed."""
        if not self._registered:
            self._registered = True
            cuda.register_host(self.data)

    def release(self) -> None:
        """Undoes `register`. The mapping itself goes with the last array on it."""
        if self._registered:
            self._registered = False
            cuda.unregister_host(self.data)

    @property
    def closed(self) -> bool:
        """Whether the node has given the slab back."""
        return int(self.generations[0]) == SLAB_CLOSED

    def check(self, offset: int, generation: int) -> None:
        """Raises StaleGeneration when the slot at `offset` was given to another block."""
        if int(self.generations[offset // self.slot_bytes]) != generation:
            raise StaleGeneration("the slot was given to another block while it was being read")


class Slabs:
    """All slabs of one session. Thread-safe; a first use of a slab asks the node and may block up to `timeout_s`."""

    def __init__(self, path: str, session_id: bytes, read_only: bool, timeout_s: float) -> None:
        """Binds to the session. Raises NodeUnavailable, PermissionRefused, SessionLost."""
        self._lock = threading.Lock()
        self._closed = False
        self._slabs: dict[int, Slab] = {}
        self._session_id = session_id
        self._read_only = read_only
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(path)
            self._ask(0)
        except OSError as error:
            self._socket.close()
            raise NodeUnavailable(f"the node's slab socket {path}: {error}") from error
        except KVStoreError:
            self._socket.close()
            raise

    def get(self, slab_id: int) -> Slab:
        """Raises NodeUnavailable, StaleGeneration for a slab that was given back, SessionLost after `close`."""
        slab = self._slabs.get(slab_id)
        if slab is None:
            with self._lock:
                slab = self._slabs.get(slab_id) or self._map(slab_id)
                self._let_go([known for known, mapped in self._slabs.items() if mapped.closed])
                self._slabs[slab_id] = slab
        return slab

    def close(self) -> None:
        """Ends the session at the node. Mappings go when nothing refers to them any more.

        No thread may still write to a slab: the node gives the slots to others at once.
        """
        self._closed = True
        self._socket.close()
        self._let_go(list(self._slabs))

    def _let_go(self, slab_ids: Iterable[int]) -> None:
        for slab_id in slab_ids:
            self._slabs.pop(slab_id).release()

    def _map(self, slab_id: int) -> Slab:
        if self._closed:
            raise SessionLost("the session was closed")
        try:
            reply, descriptors = self._ask(slab_id)
        except OSError as error:
            raise NodeUnavailable(f"the node does not hand out slab {slab_id}: {error}") from error
        slab_fd, generations_fd = descriptors
        try:
            writable = 0 if self._read_only else mmap.PROT_WRITE
            data = mmap.mmap(slab_fd, reply.slab_bytes, mmap.MAP_SHARED, mmap.PROT_READ | writable)
            words = mmap.mmap(generations_fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(slab_fd)
            os.close(generations_fd)
        mapped = np.frombuffer(data, np.uint8)
        if reply.hugepages:
            pages.ask_for_huge(mapped)
        pages.find(mapped)  # now rather than in the first copy
        return Slab(mapped, np.frombuffer(words, np.uint64), reply.slot_bytes)

    def _ask(self, slab_id: int) -> tuple[node_pb2.SlabReply, list[int]]:
        self._socket.sendall(node_pb2.SlabRequest(session_id=self._session_id, slab_id=slab_id).SerializeToString())
        while True:
            reply, descriptors = self._receive()
            if reply.slab_id == slab_id:
                break
            # The answer to a question that had timed out: mapped in this one's place it would be other blocks' memory.
            for descriptor in descriptors:
                os.close(descriptor)
        if reply.error:
            raise _slab_error(reply.error)
        return reply, descriptors

    def _receive(self) -> tuple[node_pb2.SlabReply, list[int]]:
        raw, ancillary, _, _ = self._socket.recvmsg(_REPLY_BYTES_MAX, socket.CMSG_SPACE(2 * array.array("i").itemsize))
        descriptors = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(payload)
        if not raw:
            raise SessionLost("the node ended the session")
        return node_pb2.SlabReply.FromString(raw), list(descriptors)


def _slab_error(text: str) -> KVStoreError:
    name, _, message = text.partition(": ")
    if name in ("SessionLost", "PermissionRefused"):
        return {"SessionLost": SessionLost, "PermissionRefused": PermissionRefused}[name](message)
    return StaleGeneration(f"the slab was given back: {text}")
