"""What an engine's stand-in hears and says: one JSON request a line on standard input, each answered with one line on
standard output, in any order. The other end is `kvstore.cli.demo_cluster.Engine`.

{"id", "op", …} → {"id", "reply": {…}} or {"id", "error"}
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from kvstore.errors import KVStoreError

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Takes a request, "op" and what goes with it, and gives the reply. A KVStoreError is the request's."""


async def serve(answer: Answer) -> None:
    """Many at once, until the input ends; nobody waits for those that are under way then."""
    async with asyncio.TaskGroup() as requests:
        asked = set()
        while line := await asyncio.to_thread(sys.stdin.readline):
            task = requests.create_task(_serve_one(answer, json.loads(line)))
            asked.add(task)
            task.add_done_callback(asked.discard)
        for task in asked:
            task.cancel()


async def _serve_one(answer: Answer, request: dict[str, Any]) -> None:
    print(json.dumps(await answered(answer, request)), flush=True)


async def answered(answer: Answer, request: dict[str, Any]) -> dict[str, Any]:
    """The line for a request."""
    number, op = request["id"], request["op"]
    try:
        return {"id": number, "reply": await answer({name: each for name, each in request.items() if name != "id"})}
    except KVStoreError as error:
        return {"id": number, "error": f"{op}: {type(error).__name__}: {error}"}
