"""Traces: a request, its calls, and the calls that those make are one tree of spans."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.errors import ConfigError
from kvstore.rpc import tracing

ROOT = Path(__file__).parents[2]
pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")


def ancestors(spans: dict[int, dict[str, Any]], span: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A span and those above it."""
    while True:
        yield span["name"], span["kind"]
        if span["parent"] == 0:
            return
        span = spans[span["parent"]]


def test_a_relayed_load_is_one_trace(tmp_path: Path) -> None:
    """Client, control plane, node, helper and storage node: each call is a span at its caller and one at its server,
    below what made it, all in the trace of the engine's request."""
    script = ROOT / "tests" / "rpc" / "spans.py"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    found = json.loads(done.stdout)
    (request,) = (span for span in found if span["name"] == "request")
    spans = {span["id"]: span for span in found if span["trace"] == request["trace"]}
    paths = {tuple(ancestors(spans, span)) for span in spans.values()}
    client, server, top = "CLIENT", "SERVER", ("request", "INTERNAL")
    assert (("Control/Match", server), ("Control/Match", client), top) in paths
    load = (("Node/Load", server), ("Node/Load", client), top)
    owner = (("Node/Transfer", server), ("Node/Transfer", client), *load)
    assert load in paths
    assert owner in paths
    assert (("Node/Transfer", server), ("Node/Transfer", client), *owner) in paths  # through the helper


def test_who_asks_for_traces_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra is not installed; who asks for none needs none."""
    tracing.set_up("node", "none")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"kvstore\[otel\]"):
        tracing.set_up("node", "otlp")


def test_a_server_exports_its_spans(tmp_path: Path) -> None:
    """`--traces console` writes them to standard error, those too that were not written yet when it stops."""
    command = [sys.executable, "-m", "kvstore", "serve", "--traces", "console", "--stop-at-eof"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert '"name": "Control/Register"' in log
    assert '"service.name": "kvstore serve"' in log
