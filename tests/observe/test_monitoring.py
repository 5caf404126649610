"""docs/monitoring against a real Prometheus: its dashboard and alerts ask for what a real cluster shows."""

import asyncio
import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import yaml

from kvstore.client import Match, buffers
from kvstore.observe.words import METRICS
from kvstore.pb import control_pb2, control_pb2_grpc
from kvstore.rpc.channel import caller, open_channel
from tests.cluster import LAYOUT, Cluster, random_blocks, whole_match
from tests.inprocess import tokens
from tests.waiting import eventually

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"
ALERTS = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Prometheus is not installed (Debian package prometheus; scripts/monitoring-check brings it)",
)


def test_only_metrics_that_there_are() -> None:
    """What the dashboard and the alerts ask for stands in the table of metrics, and every label too."""
    parts = ("_bucket", "_count", "_sum")
    for expression in [*EXPRESSIONS, *(alert["expr"] for alert in ALERTS)]:
        for name, selector in re.findall(r"(kvstore_\w+)(?:\{([^}]*)\})?", expression):
            histogram = next((name.removesuffix(part) for part in parts if name.endswith(part)), name)
            word = METRICS[name if name in METRICS else histogram]
            asked = set(re.findall(r"(\w+)[=!]", selector)) - {"instance", "job"}
            assert asked <= set(word.labels), expression


def test_panels_do_not_overlap() -> None:
    """Each place of the grid belongs to one panel, and each panel has a number of its own."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@needs_prometheus
def test_the_rules_are_rules() -> None:
    """promtool takes the rules and the configuration."""
    for what, name in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
        subprocess.run(["promtool", "check", what, name], cwd=MONITORING, check=True, capture_output=True, timeout=30)


class Prometheus:
    """A running one."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now; raises HTTPError for what is no expression."""
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"

        def get() -> Any:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.loads(answer.read())

        answer = await asyncio.to_thread(get)
        assert answer["status"] == "success"
        return list(answer["data"]["result"])


@asynccontextmanager
async def prometheus(folder: Path, targets: list[str]) -> AsyncIterator[Prometheus]:
    """Scrapes the targets every half second, with the rules of docs/monitoring."""
    settings = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(MONITORING / "alerts.yml")],
        "scrape_configs": [{"job_name": "kvstore", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    )
    try:
        server = Prometheus(f"http://{address}")

        async def scraped() -> bool:
            try:
                found = await server.query("min(count_over_time(kvstore_process_info[1m]))")
            except OSError:
                return False
            return (
                bool(found) and float(found[0]["value"][1]) >= 4 and len(await server.query("up == 1")) == len(targets)
            )

        await eventually(scraped, 30)
        yield server
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 10)


async def busy(processes: Cluster, folder: Path) -> list[str]:
    """A cluster that has stored, evicted, spilled and loaded, and refused a call; its endpoints, by HOST:PORT."""
    any_port = {"metrics_listen": "127.0.0.1:0"}
    control = await processes.control(**any_port)
    first = await processes.node("n0", control.address, dram_bytes="4MiB", slab_bytes="1MiB", **any_port)
    disk = {"nvme_paths": str(folder / "nvme"), "nvme_bytes": "64MiB", "nvme_slab_bytes": "16MiB"}
    second = await processes.node("n1", control.address, dram_bytes="64MiB", **disk, **any_port)
    writer, reader = await processes.client(first), await processes.client(second)
    kv = buffers.contiguous(random_blocks(LAYOUT, 20), LAYOUT)
    for seed in range(3):
        await writer.store(tokens(20, seed), kv)
    match = await eventually(lambda: whole_match(reader, tokens(20, 2)))
    assert isinstance(match, Match)
    await reader.load(match, kv).result()
    await reader.store(tokens(20, 4), kv)
    async with open_channel(control.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await control_pb2_grpc.ControlStub(channel).Match(control_pb2.MatchRequest(caller=caller("test")))
    return [urllib.parse.urlsplit(server.values["metrics"]).netloc for server in (control, first, second)]


def without_bound(expression: str) -> str:
    """What an alert looks at, whether or not it is beyond its bound."""
    looked_at, compared, _ = re.split(r" (==|>) ", expression)
    assert compared
    return looked_at


@needs_prometheus
async def test_every_expression_finds_data(processes: Cluster, tmp_path: Path) -> None:
    """Prometheus scrapes a cluster that has worked: each expression of dashboard and alerts is one, and gives series;
    and the alert of a silent node goes off when a node is killed."""
    async with prometheus(tmp_path, await busy(processes, tmp_path)) as server:
        for expression in EXPRESSIONS:
            asked = expression.replace("$instance", ".*").replace("$__rate_interval", "1m")
            assert await server.query(asked), expression
        seen = {
            "KvstoreCallsFail",  # calls that fail by a mistake of ours: there are none
        }
        for alert in ALERTS:
            await server.query(alert["expr"])
            assert await server.query(without_bound(alert["expr"])) or alert["alert"] in seen, alert["alert"]
        await processes.running[2].kill()
        await eventually(lambda: server.query('ALERTS{alertname="KvstoreNodeSilent",node_id="n1"}'), 20)
