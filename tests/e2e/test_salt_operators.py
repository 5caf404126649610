"""Where keys are salted: what is stored outlives restarts, operators find it, and the salt stays where it is."""

import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from kvstore.cli.tokens import salt_file
from kvstore.client import buffers
from kvstore.config import MIB
from kvstore.pb import node_pb2, node_pb2_grpc
from kvstore.rpc.channel import caller, open_channel
from kvstore.rpc.tokens import read_tokens
from tests.cluster import LAYOUT, whole_match
from tests.e2e.town import BLOCKS, PROMPT, SOURCE, Desk, Town
from tests.inprocess import site
from tests.waiting import eventually


class Lasting(Town):
    """With a disk, and a page."""

    async def open(self, **control: Any) -> "Lasting":
        await super().open(page="127.0.0.1:0", **control)
        return self

    async def start(self, *args: Any, **options: Any) -> Any:
        disk = {"nvme_paths": (str(self.folder / "device"),), "nvme_bytes": 17 * MIB, "nvme_slab_bytes": 4 * MIB}
        return await super().start(*args, **options, **disk, nvme_free_bytes_min=0)

    async def restart(self) -> None:
        """Of both servers, with the same files."""
        address = self.control.address
        await self.node.stop()
        await self.control.stop()
        await self.open(listen=address)


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Lasting]:
    async with site(tmp_path) as here:
        yield await Lasting(here, tmp_path).open()


@pytest.fixture
def desk(town: Lasting, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(town, capsys)


async def test_what_is_stored_outlives_a_restart(town: Lasting) -> None:
    """Of node and control plane: the same keys are found, and the same bytes come."""
    before = (await town.stored("acme")).chain(PROMPT)
    await town.restart()
    client = await town.client("acme")
    assert client.chain(PROMPT) == before
    match = await eventually(lambda: whole_match(client, PROMPT))
    landed = np.zeros_like(SOURCE)
    assert (await client.load(match, buffers.contiguous(landed, LAYOUT)).result()).blocks == BLOCKS
    assert np.array_equal(landed, SOURCE)


async def test_operators_name_a_prompt_by_its_tokens(town: Lasting, desk: Desk) -> None:
    """With every verb that takes them."""
    await town.stored("acme")
    explained = await desk.of_prompt("explain")
    assert [block["verdict"] for block in explained["blocks"]] == ["here"] * BLOCKS
    located = await desk.of_prompt("blocks", "--tokens")
    assert [block["locations"][0]["node_id"] for block in located["blocks"]] == ["n0"] * BLOCKS
    pinned = await desk.of_prompt("pin", "--for", "1m")
    assert [node["pin"]["blocks"] for node in pinned["nodes"]] == [str(BLOCKS)]
    exported = await desk.export("--prefix", str(desk.prompt))
    assert (exported["blocks"], exported["missing"]) == (BLOCKS, 0)
    assert (await desk.import_())["present"] == BLOCKS
    purged = await desk.of_prompt("purge", "--prefix")
    assert purged["nodes"][0]["purged"]["pinned_blocks"] == str(BLOCKS)


async def test_explain_looks_elsewhere(town: Lasting, desk: Desk) -> None:
    """Under the keys that the prompt has there."""
    await town.stored("bolt")
    said = (await desk.of_prompt("explain"))["blocks"][0]
    assert said["verdict"] == "other_namespace"
    assert "tenant: 'bolt' there, 'acme' asked" in said["text"]


async def test_a_file_of_another_salt_is_not_imported(town: Lasting, desk: Desk) -> None:
    """An error that says so, before anything is stored."""
    await town.stored("acme")
    await desk.export()
    salt_file(town.certs.tokens, renew=True)
    await town.restart()

    async def registered() -> bool:
        return bool((await desk.run("nodes"))["nodes"])

    await eventually(registered)
    held = town.node.catalog.block_count
    await desk.import_(code=2)
    assert "its keys were made with another salt than this cluster's" in desk.said
    assert town.node.catalog.block_count == held


async def test_the_page_finds_a_prompt(town: Lasting) -> None:
    """By its tokens, in whichever namespace, and in one that is named."""
    acme = await town.stored("acme")
    assert town.control.page is not None
    believed = ssl.create_default_context(cafile=town.operator.ca)
    believed.check_hostname = False
    async with httpx2.AsyncClient(base_url=town.control.page.url, trust_env=False, verify=believed) as browser:
        await browser.post("/login", data={"token": town.certs.secret("olga")})
        for named in ({}, {"namespace": acme.namespace.id.hex()}):
            found = await browser.post("/api/search", json={"tokens": PROMPT.tolist(), **named})
            assert (found.json()["matched"], len(found.json()["blocks"])) == (BLOCKS, BLOCKS), found.text


async def test_the_salt_is_nowhere_but_in_its_file(town: Lasting, desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Nor are seeds: not in logs, answers to operators, exported files, devices with their manifests, or the index."""
    with caplog.at_level(logging.DEBUG, "kvstore"):
        acme = await town.stored("acme")
        salt = read_tokens(str(town.certs.tokens)).salt
        await desk.of_prompt("explain")
        await desk.export()
        for verb in ("stats", "nodes", "loads", "pins"):
            await desk.run(verb)
        await town.restart()
        await town.client("acme")
    async with open_channel(town.node.socket, door=town.operator) as channel:
        usage = await node_pb2_grpc.NodeStub(channel).Usage(node_pb2.UsageRequest(caller=caller("olga")), timeout=5)
    written = [path for path in town.folder.rglob("*") if path.is_file() and path != town.certs.tokens]
    assert {"namespaces.json", "x.kv", "data.mdb"} <= {path.name for path in written}
    texts = [caplog.text.encode(), desk.said.encode(), usage.SerializeToString()]
    for text in (*texts, *(path.read_bytes() for path in written)):
        for secret in (salt.secret, acme.key_seed):
            assert not any(form in text for form in (secret, secret.hex().encode(), repr(secret)[2:-1].encode()))
    assert salt.secret.hex() in town.certs.tokens.read_text()
