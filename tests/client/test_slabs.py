"""Mapped slabs, against a real session's socket and memory: bytes, words, and answers that come too late."""

import gc
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore.client import buffers
from kvstore.client.slabs import Slabs
from kvstore.errors import KVStoreError, NodeUnavailable, PermissionRefused, SessionLost, StaleGeneration
from kvstore.node.tiers.dram import DramMemory
from kvstore.pb import node_pb2
from tests.cluster import LAYOUT, random_blocks
from tests.inprocess import site, tokens

HUGE = Path("/sys/kernel/mm/transparent_hugepage")
SESSION = bytes(range(16))
SLOT_BYTES, SLOTS = 4096, 4
SLAB_BYTES = SLOT_BYTES * SLOTS
Answer = Callable[[node_pb2.SlabRequest], tuple[node_pb2.SlabReply, list[int]]]


class Node:
    """The node's end of the socket, in a thread: answers as the test says, over real shared memory."""

    def __init__(self, path: Path) -> None:
        self.memory = DramMemory(hugepages=False)
        self.path = str(path)
        self.asked: list[int] = []
        self.answer: Answer | None = self.slab
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def slab(self, request: node_pb2.SlabRequest) -> tuple[node_pb2.SlabReply, list[int]]:
        if request.slab_id == 0:
            return node_pb2.SlabReply(bound=True), []
        shared = self.memory.share(request.slab_id, read_only=request.slab_id == 2)
        reply = node_pb2.SlabReply(
            slab_id=request.slab_id, slab_bytes=SLAB_BYTES, slot_bytes=SLOT_BYTES, hugepages=shared.hugepages
        )
        return reply, [shared.slab_fd, shared.generations_fd]

    def fill(self, slab_id: int, value: int) -> None:
        self.memory.open_slab(slab_id, SLAB_BYTES, SLOT_BYTES, "tenant")
        self.memory.write(slab_id, 0, np.full(SLAB_BYTES, value, np.uint8))
        for slot in range(SLOTS):
            self.memory.set_generation(slab_id, slot, 10 * slab_id + slot)

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while raw := connection.recv(4096):
                request = node_pb2.SlabRequest.FromString(raw)
                self.asked.append(request.slab_id)
                if self.answer is None:
                    return  # hangs up
                reply, descriptors = self.answer(request)
                socket.send_fds(connection, [reply.SerializeToString()], descriptors)

    def close(self) -> None:
        self._thread.join(5)
        assert not self._thread.is_alive()
        self._listener.close()
        self.memory.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "slabs")
    node.fill(1, 0x11)
    yield node
    node.close()


@pytest.fixture
def slabs(node: Node) -> Iterator[Slabs]:
    slabs = Slabs(node.path, SESSION, read_only=False, timeout_s=2)
    yield slabs
    slabs.close()


def test_a_slab_is_mapped_once(node: Node, slabs: Slabs) -> None:
    """Its bytes are the node's, both ways; its words say which block a slot has."""
    slab = slabs.get(1)
    assert slabs.get(1) is slab
    assert node.asked == [0, 1]
    assert (slab.data == 0x11).all()
    slab.data[5] = 7
    assert node.memory.view(1, 5, 1)[0] == 7
    slab.check(SLOT_BYTES + 17, 11)
    node.memory.set_generation(1, 1, 99)
    with pytest.raises(StaleGeneration):
        slab.check(SLOT_BYTES + 17, 11)
    slab.check(0, 10)


@pytest.mark.skipif(not HUGE.exists(), reason="the kernel has no huge pages")
@pytest.mark.parametrize("hugepages", [True, False])
async def test_huge_pages_are_asked_for_where_the_node_does(tmp_path: Path, hugepages: bool) -> None:
    """By both: who touches a page first decides its size, so an engine must not ask where an operator wants none."""
    gc.collect()  # what earlier tests left to the collector
    before = slab_mappings().keys()
    async with site(tmp_path) as here:
        node = await here.node(hugepages=hugepages)
        client = await here.client(node)
        await client.store(tokens(1), buffers.contiguous(random_blocks(LAYOUT, 1), LAYOUT))
        mapped = [flags for where, flags in slab_mappings().items() if where not in before]
        assert len(mapped) >= 2
        assert {"hg" in flags for flags in mapped} == {hugepages}


def slab_mappings() -> dict[str, set[str]]:
    """Flags of the mappings of slabs in this process, by address."""
    parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    return {
        part.split()[0]: {*part.rpartition("VmFlags:")[2].split()} for part in parts if "memfd:kvstore-slab" in part
    }


def test_descriptors_do_not_stay_open(node: Node, slabs: Slabs) -> None:
    """But for those that the interpreter keeps with a mapping, two of each slab; whatever the answer was."""
    before = len(os.listdir("/proc/self/fd"))
    slab = slabs.get(1)
    node.answer = lambda request: (node_pb2.SlabReply(slab_id=request.slab_id, error="InvalidInput: no"), [])
    with pytest.raises(StaleGeneration):
        slabs.get(9)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    assert slab.data[0] == 0x11
    del slab
    slabs.close()
    assert len(os.listdir("/proc/self/fd")) < before  # the socket too


def test_a_reader_cannot_write(node: Node, slabs: Slabs) -> None:
    """Its mapping is read-only, as its descriptor."""
    node.fill(2, 0x22)
    reader = slabs
    reader._read_only = True
    slab = reader.get(2)
    assert slab.data[0] == 0x22
    with pytest.raises(ValueError, match="read-only"):
        slab.data[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        slab.generations[0] = 1


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("SessionLost: attach again", SessionLost),
        ("PermissionRefused: not yours", PermissionRefused),
        ("InvalidInput: slab 5 is not open", StaleGeneration),
        ("KeyError: 5", StaleGeneration),
    ],
)
def test_refusals_come_back_as_themselves(node: Node, slabs: Slabs, text: str, error: type[KVStoreError]) -> None:
    """A slab that the node no longer has is another generation's memory."""
    node.answer = lambda request: (node_pb2.SlabReply(slab_id=request.slab_id, error=text), [])
    with pytest.raises(error):
        slabs.get(5)
    node.answer = node.slab
    assert slabs.get(1).data[0] == 0x11


def test_an_answer_that_comes_too_late_is_nobodys(node: Node, slabs: Slabs) -> None:
    """Mapped in place of the slab that was asked for next, it would be other blocks' memory."""
    node.fill(3, 0x33)
    slabs._socket.settimeout(0.1)
    go_on = threading.Event()

    def late(request: node_pb2.SlabRequest) -> tuple[node_pb2.SlabReply, list[int]]:
        assert go_on.wait(5)
        return node.slab(request)

    node.answer = late
    with pytest.raises(NodeUnavailable):
        slabs.get(1)
    go_on.set()
    slabs._socket.settimeout(2)
    before = len(os.listdir("/proc/self/fd"))
    assert (slabs.get(3).data == 0x33).all()
    assert (slabs.get(1).data == 0x11).all()
    assert len(os.listdir("/proc/self/fd")) == before + 4


def test_slabs_that_the_node_closed_are_let_go(node: Node, slabs: Slabs) -> None:
    """With the next one that is mapped: the node's memory is not kept by its clients."""
    slabs.get(1)
    node.memory.close_slab(1)
    node.fill(3, 0x33)
    slabs.get(3)
    assert list(slabs._slabs) == [3]


def test_many_threads_want_the_same_slab(node: Node, slabs: Slabs) -> None:
    """It is asked for and mapped once."""
    got: list[object] = []
    threads = [threading.Thread(target=lambda: got.append(slabs.get(1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len(set(map(id, got))) == 1
    assert node.asked == [0, 1]


def test_after_close(node: Node, slabs: Slabs) -> None:
    """Nothing more is mapped; what somebody still has stays readable."""
    slab = slabs.get(1)
    slabs.close()
    assert slab.data[0] == 0x11
    with pytest.raises(SessionLost):
        slabs.get(1)


def test_a_session_that_the_node_ended(node: Node, slabs: Slabs) -> None:
    """Is lost."""
    node.answer = None
    with pytest.raises((SessionLost, NodeUnavailable)):
        slabs.get(5)


def test_nobody_at_the_socket(tmp_path: Path) -> None:
    """Is a node that is not there."""
    with pytest.raises(NodeUnavailable):
        Slabs(str(tmp_path / "nobody"), SESSION, read_only=False, timeout_s=1)
