"""The life of a server process: ready line, signals, deadline."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# The service that each process runs; `mode` says how it misbehaves.
SERVICE = """
import argparse, asyncio, contextlib, sys, time
from kvstore.cli import process
from kvstore.errors import ConfigError
mode = sys.argv[1]
process.STOP_DEADLINE_S = 0.2 if mode == "hangs" else 20

@contextlib.asynccontextmanager
async def service():
    if mode == "fails":
        raise ConfigError("no such device")
    if mode == "starts for ever":
        print("starting", flush=True)
        await asyncio.sleep(60)
    yield "address=somewhere"
    print("stopping", flush=True)
    if mode in ("hangs", "stops slowly"):
        await asyncio.sleep(60)
    print("stopped", flush=True)

parser = argparse.ArgumentParser()
process.add_process_arguments(parser)
try:
    sys.exit(process.run_service("test", service, parser.parse_args(sys.argv[2:])))
except ConfigError as error:
    sys.exit(str(error))
"""


@contextmanager
def running(mode: str, *options: str) -> Iterator["subprocess.Popen[str]"]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", SERVICE, mode, *options]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip()


READY = "kvstore test ready: address=somewhere"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_cleanly(number: signal.Signals) -> None:
    """The first signal lets the service leave, and the exit code is 0."""
    with running("well") as process:
        assert line(process) == READY
        process.send_signal(number)
        assert [line(process), line(process)] == ["stopping", "stopped"]
        assert process.wait(10) == 0


def test_a_second_signal_ends_at_once() -> None:
    """Who asks twice does not wait for the clean stop."""
    with running("stops slowly") as process:
        assert line(process) == READY
        process.send_signal(signal.SIGTERM)
        assert line(process) == "stopping"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + signal.SIGINT


def test_a_stop_has_a_deadline() -> None:
    """A service that does not stop is ended with exit code 1, and a line says so."""
    with running("hangs") as process:
        assert line(process) == READY
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 1
        assert process.stderr is not None
        assert "did not stop within 0.2 s" in process.stderr.read()


def test_a_signal_interrupts_the_start() -> None:
    """A service that is still starting can be stopped too."""
    with running("starts for ever") as process:
        assert line(process) == "starting"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_an_error_of_the_start_is_raised() -> None:
    """What the service raises while it starts reaches the caller."""
    with running("fails") as process:
        assert process.wait(10) == 1
        assert process.stderr is not None
        assert process.stderr.read() == "no such device\n"


def test_the_end_of_input_stops() -> None:
    """With --stop-at-eof a dead parent is enough; without it standard input is left alone."""
    with running("well", "--stop-at-eof") as process:
        assert line(process) == READY
        assert process.stdin is not None
        process.stdin.write("not yet\n")
        process.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.stdin.close()
        assert line(process) == "stopping"
        assert process.wait(10) == 0


def test_without_uvloop_the_stock_loop_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop is a wish, no need."""
    from kvstore.cli import process

    assert process._loop_factory() is not None
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert process._loop_factory() is None
