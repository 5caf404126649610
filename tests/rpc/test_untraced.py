"""What tracing costs where nobody asked for it: nothing, in any call."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABSENT = 'import sys\nprint("asked for", file=sys.stderr)\nraise ImportError("not installed")\n'


@pytest.mark.parametrize(
    "installed",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(find_spec("opentelemetry") is None, reason="needs the extra otel")),
    ],
)
def test_a_call_does_nothing_for_spans(tmp_path: Path, installed: bool) -> None:
    """Without the extra, and with it where it is not set up: nothing of tracing runs in a call or wraps it, at its
    caller or its server. What is absent is looked for once, when the process starts."""
    if not installed:
        (tmp_path / "opentelemetry.py").write_text(ABSENT)
    paths = [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "rpc" / "untraced.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert json.loads(done.stdout) == {"ran": [], "wrapped": []}
    assert done.stderr.count("asked for") == (not installed)
