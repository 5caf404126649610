"""How a rival's process talks to kvbench: one JSON request a line, each answered with one.

`{"id": 1, "op": "put", …}` → `{"id": 1, "reply": {…}}` or `{"id": 1, "error": "…"}`; values of a request are text. The
other end is `kvstore.cli.demo_cluster.Engine`.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Action = Callable[..., dict[str, Any]]
"""Takes the request's fields by name, and returns the reply."""


def own_output() -> TextIO:
    """Standard output for the protocol alone: what native libraries print goes to standard error from here on."""
    kept = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return kept


def answer(actions: Mapping[str, Action], output: TextIO) -> None:
    """Serves until standard input ends. An action that raises is an error of its request, no end of the process.

    `ready` is answered by every adapter: whatever it needs to start has started.
    """
    known: dict[str, Action] = {"ready": dict, **actions}
    for line in sys.stdin:
        request = json.loads(line)
        number, op = request.pop("id"), request.pop("op")
        try:
            said = {"id": number, "reply": known[op](**request)}
        except Exception as error:
            said = {"id": number, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), file=output, flush=True)
