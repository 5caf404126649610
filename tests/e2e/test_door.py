"""A cluster whose door is shut: real processes, real certificates, the real command line."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvstore.client import buffers
from kvstore.config import DoorConfig
from tests.certs import Certs
from tests.cluster import LAYOUT, Cluster, random_blocks, whole_match
from tests.waiting import eventually

BLOCKS = 4


def options(door: DoorConfig) -> dict[str, str]:
    return {"door_cert": door.cert, "door_key": door.key, "door_ca": door.ca}


def admin(verb: str, control: str, door: DoorConfig | None) -> "subprocess.CompletedProcess[str]":
    shown = [] if door is None else ["--door-cert", door.cert, "--door-key", door.key, "--door-ca", door.ca]
    return subprocess.run(
        [sys.executable, "-m", "kvstore", "admin", verb, "--control", control, "--json", *shown],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.ucx
async def test_blocks_travel_behind_a_shut_door(processes: Cluster, tmp_path: Path) -> None:
    """Store at one node, match and load at another, ask as an operator; who shows no certificate is told nothing."""
    certs = Certs(tmp_path / "certs")
    control = await processes.control(**options(certs.door("control")))
    nodes = [
        await processes.node(name, control.address, **options(certs.door("node"))) for name in ("writer", "reader")
    ]
    content, tokens = random_blocks(LAYOUT, BLOCKS), np.arange(BLOCKS * LAYOUT.block_tokens, dtype=np.uint32)
    writer, reader = [await processes.client(node, door=certs.door("client")) for node in nodes]
    await writer.store(tokens, buffers.contiguous(content, LAYOUT))
    found = await eventually(lambda: whole_match(reader, tokens))
    landed = np.zeros_like(content)
    assert (await reader.load(found, buffers.contiguous(landed, LAYOUT)).result()).blocks == BLOCKS
    assert (landed == content).all()
    asked = await asyncio.to_thread(admin, "stats", control.address, certs.door("client"))
    assert asked.returncode == 0, asked.stderr
    usages = json.loads(asked.stdout)["nodes"]
    assert [node["error"] for node in usages] == ["", ""]
    for door in (None, certs.stranger("client")):
        refused = await asyncio.to_thread(admin, "stats", control.address, door)
        assert (refused.returncode, refused.stdout) == (2, "")
