"""A cluster whose door is shut: real processes, real certificates, the real command line."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvstore.client import buffers
from kvstore.config import DoorConfig
from tests.certs import Certs
from tests.cluster import LAYOUT, Cluster, door_options, random_blocks, whole_match
from tests.waiting import eventually

BLOCKS = 4


def admin(verb: str, control: str, door: DoorConfig | None, token: str = "") -> "subprocess.CompletedProcess[str]":
    shown = [] if door is None else ["--door-cert", door.cert, "--door-key", door.key, "--door-ca", door.ca]
    shown += ["--token-file", door.token_file] if door and door.token_file else []
    return subprocess.run(
        [sys.executable, "-m", "kvstore", "admin", verb, "--control", control, "--json", *shown],
        env=os.environ | {"KVSTORE_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.ucx
async def test_blocks_travel_behind_a_shut_door(processes: Cluster, tmp_path: Path) -> None:
    """Store at one node, match and load at another, ask as an operator; who shows no certificate is told nothing."""
    certs = Certs(tmp_path / "certs")
    control = await processes.control(**door_options(certs.door("control")))
    nodes = await processes.nodes("writer", "reader", control=control.address, **door_options(certs.door("node")))
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
        assert ("it may ask for a certificate: --door-cert" in refused.stderr) == (door is None)


@pytest.mark.ucx
async def test_blocks_travel_where_tokens_are_asked(processes: Cluster, tmp_path: Path) -> None:
    """A tenant stores at one node and loads at another with his token; an operator shows his by file or variable."""
    certs = Certs(tmp_path / "certs")
    tenant, reader = certs.holder("engine", tenant="default"), certs.holder("anna", admin="read")
    control = await processes.control(**door_options(certs.server("control")))
    nodes = await processes.nodes("writer", "reader", control=control.address, **door_options(certs.server("node")))
    content, tokens = random_blocks(LAYOUT, BLOCKS), np.arange(BLOCKS * LAYOUT.block_tokens, dtype=np.uint32)
    near, far = [await processes.client(node, door=tenant) for node in nodes]
    await near.store(tokens, buffers.contiguous(content, LAYOUT))
    found = await eventually(lambda: whole_match(far, tokens))
    landed = np.zeros_like(content)
    assert (await far.load(found, buffers.contiguous(landed, LAYOUT)).result()).blocks == BLOCKS
    assert (landed == content).all()
    asked = await asyncio.to_thread(admin, "stats", control.address, reader)
    assert asked.returncode == 0, asked.stderr
    assert [node["error"] for node in json.loads(asked.stdout)["nodes"]] == ["", ""]
    secret = certs.secret("anna")
    asked = await asyncio.to_thread(admin, "nodes", control.address, replace(reader, token_file=""), token=secret)
    assert asked.returncode == 0, asked.stderr
    for door, token, said in (
        (certs.door("client"), "", "make one with `kvstore tokens add`"),
        (certs.door("client"), "secret of another kind", "no token of `kvstore tokens add`"),
        (tenant, "", "needs an admin's token"),
    ):
        refused = await asyncio.to_thread(admin, "stats", control.address, door, token=token)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert said in refused.stderr
