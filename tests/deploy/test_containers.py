"""The Dockerfile and the Kubernetes manifest, held against the program that they start."""

import argparse
import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvstore.cli.layers import combined, layers
from kvstore.cli.main import main
from kvstore.cli.options import size
from kvstore.cli.process import STOP_DEADLINE_S
from kvstore.config import Config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs/deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
OBJECTS = {
    (each["kind"], each["metadata"]["name"]): each
    for each in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
}
WORKLOADS = {"control": OBJECTS["StatefulSet", "kvstore-control"], "node": OBJECTS["DaemonSet", "kvstore-node"]}
EVERY_WORKLOAD = pytest.mark.parametrize("name", WORKLOADS)
HOST = Config.load(DEPLOY / "kvstore.toml")
"""The one-host configuration, which the systemd units use."""


def pod(name: str) -> dict[str, Any]:
    return WORKLOADS[name]["spec"]["template"]["spec"]


def container(name: str) -> dict[str, Any]:
    (only,) = pod(name)["containers"]
    return only


def environment(name: str) -> dict[str, str]:
    """Of a pod, on a machine that is made up."""
    fields = {"status.hostIP": "10.0.0.7", "spec.nodeName": "gpu-7"}
    told: dict[str, str] = {}
    for each in container(name).get("env", ()):
        text = each["value"] if "value" in each else fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        told[each["name"]] = re.sub(r"\$\((\w+)\)", lambda match: told[match[1]], text)
    return told


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Config]:
    """What each process is configured with, as the check that operators run accepts it."""
    found = {}
    for name in WORKLOADS:
        path = tmp_path / f"{name}.toml"
        path.write_text(OBJECTS["ConfigMap", "kvstore"]["data"][f"{name}.toml"])
        with monkeypatch.context() as patched:
            for variable, text in environment(name).items():
                patched.setenv(variable, text)
            assert main(["config", "check", "--config", str(path)]) == 0
            found[name] = combined(layers(argparse.Namespace(config=str(path)), os.environ))
    return found


# ---- the image -------------------------------------------------------------------------------------------------------


def instructions() -> Iterator[tuple[str, str]]:
    for line in DOCKERFILE.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            yield name, rest


def test_the_image_is_built_of_what_there_is() -> None:
    """Instructions are Docker's, sources exist and pass .dockerignore, the Python is new enough, the extra exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "STOPSIGNAL", "USER", "WORKDIR"}
    assert {name for name, _ in instructions()} <= known
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [
        word for name, rest in instructions() if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert source in let_in
    needed = tuple(map(int, re.findall(r"\d+", project["requires-python"])))
    for version in re.findall(r"^FROM python:(\d+)\.(\d+)", DOCKERFILE, re.MULTILINE):
        assert tuple(map(int, version)) >= needed
    (extra,) = re.findall(r"^ARG EXTRA=(\w+)$", DOCKERFILE, re.MULTILINE)
    assert extra in project["optional-dependencies"]


def test_the_image_runs_the_program_as_nobody_special() -> None:
    """As the user that the pods name."""
    told = dict(instructions())
    assert json.loads(told["ENTRYPOINT"]) == ["kvstore"]
    assert told["STOPSIGNAL"] == "SIGTERM"
    for name in WORKLOADS:
        context = pod(name)["securityContext"]
        assert told["USER"] == f"{context['runAsUser']}:{context['runAsGroup']}"


# ---- the manifest ----------------------------------------------------------------------------------------------------


@EVERY_WORKLOAD
def test_a_pod_starts_what_there_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its command and options exist, and it waits longer than the process takes to stop."""
    with pytest.raises(SystemExit) as ended:
        main([*container(name)["args"], "--help"])
    assert ended.value.code == 0
    assert f"usage: kvstore {name}" in capsys.readouterr().out
    assert pod(name)["terminationGracePeriodSeconds"] > STOP_DEADLINE_S


def test_ports_are_those_of_the_configuration(configured: dict[str, Config]) -> None:
    """Of the manifest, of the Service, of the one-host configuration: the same everywhere."""
    control, node = configured["control"], configured["node"]
    ports = {name: {each["name"]: each["containerPort"] for each in container(name)["ports"]} for name in WORKLOADS}
    assert ports == {
        "control": {"grpc": port(control.control.listen), "page": port(control.control.page)},
        "node": {"grpc": port(node.node.listen)},
    }
    assert port(HOST.control.listen) == ports["control"]["grpc"] == port(node.node.control)
    assert port(HOST.control.page) == ports["control"]["page"]
    assert port(HOST.node.listen) == ports["node"]["grpc"]
    service = OBJECTS["Service", "kvstore-control"]["spec"]
    assert {each["targetPort"]: each["port"] for each in service["ports"]} == ports["control"]


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_nodes_find_the_control_plane(configured: dict[str, Config]) -> None:
    """By the name that the StatefulSet and its Service give it, and are called by their host's address."""
    control = WORKLOADS["control"]
    host = configured["node"].node.control.rpartition(":")[0].split(".")
    assert host == [
        f"{control['metadata']['name']}-0",
        control["spec"]["serviceName"],
        control["metadata"]["namespace"],
        "svc",
    ]
    assert (
        OBJECTS["Service", control["spec"]["serviceName"]]["spec"]["selector"]
        == control["spec"]["selector"]["matchLabels"]
    )
    assert (configured["node"].node.listen, configured["node"].node.node_id) == ("10.0.0.7:7401", "gpu-7")
    assert control["spec"]["replicas"] == 1


@EVERY_WORKLOAD
def test_the_door_is_shut(name: str, configured: dict[str, Config]) -> None:
    """With files that are mounted, and tokens."""
    config, mounts = configured[name], [each["mountPath"] for each in container(name)["volumeMounts"]]
    assert config.door.shut
    assert not config.control.insecure
    assert not config.node.insecure
    for path in (config.door.cert, config.door.key, config.door.ca, config.door.tokens):
        assert any(Path(path).is_relative_to(mount) for mount in mounts), path


@EVERY_WORKLOAD
def test_what_is_mounted_exists(name: str) -> None:
    """Every mount has its volume, every volume a mount; what the processes write is on one that may be written."""
    claims = [each["metadata"]["name"] for each in WORKLOADS[name]["spec"].get("volumeClaimTemplates", ())]
    volumes = {each["name"] for each in pod(name)["volumes"]} | set(claims)
    all_of = [*pod(name)["containers"], *pod(name).get("initContainers", ())]
    assert {mount["name"] for each in all_of for mount in each["volumeMounts"]} == volumes
    assert (
        WORKLOADS[name]["spec"]["template"]["metadata"]["labels"] == WORKLOADS[name]["spec"]["selector"]["matchLabels"]
    )
    for volume in pod(name)["volumes"]:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in OBJECTS
        if "secret" in volume:
            assert volume["secret"]["defaultMode"] == 0o440, "readable for the pod's group, writable for nobody"


def test_what_processes_write_may_be_written(configured: dict[str, Config]) -> None:
    """Index, socket, NVMe tier; nothing else is: the root file system is read-only."""
    paths = {
        "control": [configured["control"].control.index_path],
        "node": [configured["node"].node.socket, *configured["node"].node.nvme_paths],
    }
    for name, written in paths.items():
        assert container(name)["securityContext"]["readOnlyRootFilesystem"]
        mounts = [each["mountPath"] for each in container(name)["volumeMounts"] if not each.get("readOnly")]
        for path in written:
            assert any(Path(path).is_relative_to(mount) for mount in mounts), path
    (prepares,) = pod("node")["initContainers"]
    assert set(configured["node"].node.nvme_paths) <= set(prepares["command"])
    assert str(Path(configured["node"].node.socket).parent) in prepares["command"]


def test_memory_is_enough_for_the_tier(configured: dict[str, Config]) -> None:
    """The limit counts what the DRAM tier takes."""
    limits = container("node")["resources"]["limits"]["memory"]
    assert size(f"{limits}B") >= configured["node"].node.dram_bytes + size("4GiB")
    assert configured["node"].node.dram_bytes == size("64GiB")


def test_commands_that_the_manifest_names_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the comment at its top."""
    text = (DEPLOY / "kubernetes.yaml").read_text()
    for command in re.findall(r"kvstore (certs|tokens) (\w+)", text):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--help"])
        assert ended.value.code == 0
    capsys.readouterr()
    for secret in re.findall(r"create secret generic (\S+)", text):
        assert any(
            volume.get("secret", {}).get("secretName") == secret
            for name in WORKLOADS
            for volume in pod(name)["volumes"]
        )
