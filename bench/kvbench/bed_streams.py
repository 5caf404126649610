"""Plain sockets between hosts of the testbed: what its NICs carry at most, and traffic that a load has to share with.

Run as a program on a host: `receive ADDRESS` says its port and then counts what comes within a window of the monotonic
clock, which all hosts share; `send ADDRESS PORT` sends until its standard input ends.
"""

import argparse
import asyncio
import select
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from kvbench.testbed import Testbed
from kvbench.topology import STORAGE, Host
from kvstore.cli.spawn import child
from kvstore.errors import DeadlineExceeded, Unavailable

_PART_BYTES = 256 * 1024
_START_S = 5.0
_SETTLE_S = 0.5
"""Until a stream has its rate and the NIC's queue is full."""
_PACING = 47  # SO_MAX_PACING_RATE; the socket module does not name it


async def rates(bed: Testbed, sender: Host, receivers: Sequence[Host], seconds: float) -> dict[str, float]:
    """Bytes per second that reach each receiver over its SNIC, while all are sent to at once. By host."""
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(_stream(bed, sender, receiver, 0)) for receiver in receivers]
        begin_s = time.monotonic() + _SETTLE_S
        for stream in streams:
            assert stream.stdin is not None
            stream.stdin.write(f"{begin_s} {begin_s + seconds}\n".encode())
        counted = await asyncio.gather(*(_line(stream, _SETTLE_S + seconds + _START_S) for stream in streams))
    return {host.name: int(count) / seconds for host, count in zip(receivers, counted, strict=True)}


@asynccontextmanager
async def background(bed: Testbed, sender: Host, mbit: Mapping[str, float]) -> AsyncIterator[None]:
    """Keeps sending to the SNICs of hosts, at a rate each."""
    async with AsyncExitStack() as stack:
        for name, rate in mbit.items():
            await stack.enter_async_context(_stream(bed, sender, bed.topology.host(name), rate))
        yield


@asynccontextmanager
async def _stream(bed: Testbed, sender: Host, receiver: Host, mbit: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """One connection, sending. Gives the receiver; its first line of input is the window."""
    address = receiver.nic(STORAGE).address
    program = ("-m", "kvbench.bed_streams")
    async with child(*program, "receive", address, prefix=bed.prefix(receiver)) as receiving:
        port = await _line(receiving, _START_S)
        words = (*program, "send", address, port, "--mbit", str(mbit))
        async with child(*words, prefix=bed.prefix(sender)) as sending:
            await _line(sending, _START_S)
            yield receiving


async def _line(process: asyncio.subprocess.Process, seconds: float) -> str:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(seconds):
            line = (await process.stdout.readline()).decode().strip()
    except TimeoutError as error:
        raise DeadlineExceeded("a stream on the testbed says nothing") from error
    if not line:
        raise Unavailable("a stream on the testbed has ended")
    return line


def _receive(address: str) -> None:
    with socket.create_server((address, 0)) as server:
        print(server.getsockname()[1], flush=True)
        stream = server.accept()[0]
    part, count, counting = bytearray(_PART_BYTES), 0, None
    # Until the window is named everything is taken; it lies ahead.
    while received := stream.recv_into(part):
        now_s = time.monotonic()
        if counting is None and select.select([sys.stdin], [], [], 0)[0]:
            if not (line := sys.stdin.readline()):
                return
            begin_s, end_s = counting = tuple(map(float, line.split()))
        if counting is not None:
            if now_s > end_s:
                print(count, flush=True)
                counting = None
            elif now_s > begin_s:
                count += received


def _send(address: str, port: int, mbit: float) -> None:
    with socket.create_connection((address, port)) as stream:
        if mbit:
            stream.setsockopt(socket.SOL_SOCKET, _PACING, int(mbit * 1e6 / 8))
        print("sending", flush=True)
        part = bytes(_PART_BYTES)
        while not select.select([sys.stdin], [], [], 0)[0]:
            try:
                stream.sendall(part)
            except ConnectionError:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    receive = commands.add_parser("receive")
    receive.add_argument("address")
    receive.set_defaults(act=lambda args: _receive(args.address))
    send = commands.add_parser("send")
    send.add_argument("address")
    send.add_argument("port", type=int)
    send.add_argument("--mbit", type=float, default=0.0)
    send.set_defaults(act=lambda args: _send(args.address, args.port, args.mbit))
    args = parser.parse_args()
    args.act(args)


if __name__ == "__main__":
    main()
