"""A control plane and a node that ask for tokens, tenants that have some, and an operator."""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kvstore.blocks.namespace import Namespace
from kvstore.cli.main import main
from kvstore.client import AsyncClient, buffers
from kvstore.config import DoorConfig
from kvstore.control.app import ControlServer
from kvstore.node.app import NodeServer
from tests.certs import Certs
from tests.cluster import LAYOUT, random_blocks, whole_match
from tests.inprocess import Site, tokens
from tests.waiting import eventually

BLOCKS = 4
PROMPT = tokens(BLOCKS)
SOURCE = random_blocks(LAYOUT, BLOCKS)


class Town:
    """The tenants are acme and bolt, the operator is olga."""

    def __init__(self, here: Site, folder: Path) -> None:
        self.here = here
        self.folder = folder
        self.certs = Certs(folder / "certs")
        for tenant in ("acme", "bolt"):
            self.door(tenant)
        self.operator = self.certs.holder("olga", admin="operate")
        self.control: ControlServer
        self.node: NodeServer

    async def open(self, **control: Any) -> "Town":
        """Starts the control plane, with these options, and node n0."""
        self.control = await self.here.control(self.certs.server("control"), heartbeat_ms=20, **control)
        self.node = await self.start(node_id="n0")
        return self

    async def start(self, door: DoorConfig | None = None, **options: Any) -> NodeServer:
        """A node of the control plane, which asks for tokens too."""
        door = door or self.certs.server("node")
        return await self.here.node(door=door, control=self.control.address, publish_ms=1, **options)

    def door(self, tenant: str) -> DoorConfig:
        return self.certs.holder(f"of-{tenant}", tenant=tenant)

    async def client(self, tenant: str, door: DoorConfig | None = None) -> AsyncClient:
        namespace = namespace_of(tenant)
        return await self.here.client(self.node, namespace=namespace, door=door or self.door(tenant))

    async def stored(self, tenant: str) -> AsyncClient:
        """A client that has stored the prompt, and finds it; where there is a disk, it is there too."""
        client = await self.client(tenant)
        await client.store(PROMPT, buffers.contiguous(SOURCE.copy(), LAYOUT))
        await eventually(lambda: whole_match(client, PROMPT))
        await eventually(lambda: self.node.catalog.owed_bytes == 0, 20)
        return client


def namespace_of(tenant: str) -> Namespace:
    return Namespace.of("m", LAYOUT, tenant=tenant)


class Desk:
    """The operator's command line. said: all that it has shown."""

    def __init__(self, town: Town, capsys: pytest.CaptureFixture[str]) -> None:
        self._town = town
        self._capsys = capsys
        layout = {"block_tokens": LAYOUT.block_tokens, "groups": [asdict(LAYOUT.group)]}
        self.prompt = town.folder / "tokens.json"
        self.prompt.write_text(json.dumps(PROMPT.tolist()))
        self._named = town.folder / "namespace.json"
        self._named.write_text(json.dumps({"model": "m", "tenant": "acme", "layout": layout}))
        self._file = town.folder / "x.kv"
        self.said = ""

    async def run(self, *words: str, code: int = 0) -> dict[str, Any]:
        """What a verb of `kvstore admin` says, as JSON."""
        door = self._town.operator
        argv = ["admin", *words, "--json", "--control", self._town.control.address, "--token-file", door.token_file]
        argv += ["--door-cert", door.cert, "--door-key", door.key, "--door-ca", door.ca]
        self._capsys.readouterr()
        returned = await asyncio.to_thread(main, argv)
        out, err = self._capsys.readouterr()
        self.said += out + err
        assert returned == code, err
        said: dict[str, Any] = json.loads(out or "{}")
        return said

    async def of_prompt(self, verb: str, *words: str) -> dict[str, Any]:
        """One about the prompt of acme, by its tokens."""
        return await self.run(verb, *words, str(self.prompt), "--namespace-json", str(self._named))

    async def export(self, *words: str) -> dict[str, Any]:
        """Of acme's namespace."""
        named = "--namespace", namespace_of("acme").id.hex()
        return await self.run("export", str(self._file), *named, *self._tenants_token, *words)

    async def import_(self, code: int = 0) -> dict[str, Any]:
        """Of what was exported."""
        return await self.run("import", str(self._file), *self._tenants_token, code=code)

    @property
    def _tenants_token(self) -> list[str]:
        return ["--tenant-token-file", self._town.door("acme").token_file]
