"""Defaults, file, environment, options: each lies over the one before, and every value knows its source."""

import argparse
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.cli.config import shown
from kvstore.cli.layers import Layer, combined, layers, load_config, source_of
from kvstore.cli.main import main
from kvstore.cli.options import add_config_file, add_options
from kvstore.config import MIB, Config, overlay
from kvstore.errors import ConfigError


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_config_file(parser)
    add_options(parser, "node")
    return parser.parse_args(argv)


def test_each_place_outweighs_the_one_before(tmp_path: Path) -> None:
    """And where a value comes from is the last place that sets it."""
    file = tmp_path / "kvstore.toml"
    file.write_text('[node]\nnode_id = "file"\nttl_ms = 1\nlease_ms = 1\n')
    environ = {"KVSTORE_NODE__TTL_MS": "2", "KVSTORE_NODE__LEASE_MS": "2"}
    laid = layers(parsed("--config", str(file), "--lease-ms", "3"), environ)
    node = combined(laid).node
    assert (node.node_id, node.ttl_ms, node.lease_ms, node.tick_ms) == ("file", 2, 3, Config().node.tick_ms)
    places = [source_of(("node", name), laid) for name in ("node_id", "ttl_ms", "lease_ms", "tick_ms")]
    assert places == [str(file), "KVSTORE_NODE__TTL_MS", "option", "default"]


def test_variables_have_the_types_of_their_settings() -> None:
    """Sizes, numbers, switches, lists, text, also in nested tables and in one that is absent by default."""
    environ = {
        "KVSTORE_NODE__DRAM_BYTES": "512MiB",
        "KVSTORE_NODE__HUGEPAGES": "No",
        "KVSTORE_NODE__ROLES": "prefill, storage",
        "KVSTORE_NODE__COMPUTE__RAILS_MAX": "2",
        "KVSTORE_NODE__STORAGE__DEVICE": "eth2",
        "KVSTORE_CONTROL__HEARTBEAT_MS": "100",
    }
    config = load_config(parsed(), environ)
    node = config.node
    assert (node.dram_bytes, node.hugepages, node.roles) == (512 * MIB, False, ("prefill", "storage"))
    assert node.storage is not None
    assert (node.compute.rails_max, node.storage.device, config.control.heartbeat_ms) == (2, "eth2", 100)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("NODE__DRAM_BYTE", "1", r"unknown setting 'node.dram_byte': did you mean 'dram_bytes'"),
        ("NODES__DRAM_BYTES", "1", r"unknown setting 'nodes': did you mean 'node'"),
        ("NODE__COMPUTE__DEVICES", "x", r"unknown setting 'node.compute.devices': did you mean 'device'"),
        ("NODE__COMPUTE", "x", "node.compute: a table is needed"),
        ("NODE__LISTEN__PORT", "1", "node.listen: str is needed"),
        ("NODE__TTL_MS", "soon", "'soon' is no whole number"),
        ("NODE__TTL_MS", "-1", "must be 0 or more: -1"),
        ("NODE__DRAM_BYTES", "much", "'much' is no size"),
        ("NODE__PROMOTE", "maybe", "'maybe' is no switch"),
        ("NAMESPACES__X", "1", "tables are needed"),
        ("__", "1", "unknown setting ''"),
    ],
)
def test_a_variable_that_cannot_be_meant(name: str, text: str, expected: str) -> None:
    """Is refused by name, with what is needed or the nearest setting."""
    with pytest.raises(ConfigError, match=f"KVSTORE_{name}: .*{expected}"):
        load_config(parsed(), {f"KVSTORE_{name}": text})


def test_variables_of_others_are_left_alone() -> None:
    """What Kubernetes makes for a service called kvstore has no double underscore."""
    environ = {"KVSTORE_PORT": "tcp://10.0.0.1:7400", "KVSTORE_SERVICE_HOST": "10.0.0.1", "PATH": "/", "A__B": "c"}
    assert load_config(parsed(), environ) == Config()


VALUES = {
    "node_id": st.text(st.characters(exclude_categories=["Cs"])),
    "dram_bytes": st.integers(0, 2**62),
    "hugepages": st.booleans(),
    "roles": st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(tuple),
    "storage": st.fixed_dictionaries({}, optional={"device": st.text("abc\"\\\x7f\n'#"), "cuda": st.booleans()}),
}


@given(st.fixed_dictionaries({}, optional=VALUES), st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_shown_says_the_same(node: dict[str, object], pattern: str) -> None:
    """Any configuration, printed and read again, is itself."""
    config = overlay(Config(), {"node": node, "namespaces": {pattern: {"ttl_ms": 1000, "probe_extends": True}}})
    assert overlay(Config(), tomllib.loads("\n".join(shown(config, [])))) == config


def test_sources_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside each value, for namespaces too."""
    file = tmp_path / "kvstore.toml"
    file.write_text('[node]\nnode_id = "a"\n[namespaces."llama-*"]\nttl_ms = 1000\n')
    monkeypatch.setenv("KVSTORE_NODE__TTL_MS", "5000")
    assert main(["config", "show", "--config", str(file), "--client-group-layers", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = [f'node_id = "a"  # {file}', "ttl_ms = 5000  # KVSTORE_NODE__TTL_MS", "group_layers = 2  # option",
                f"ttl_ms = 1000  # {file}", "promote = true  # default"]  # fmt: skip
    assert [line for line in expected if line not in lines] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[node]\nlisten = "0.0.0.0:1"', "node.listen 0.0.0.0:1: other hosts"),
        ('[control]\nlisten = "0.0.0.0:1"', "control.listen 0.0.0.0:1: other hosts"),
        (
            '[node]\nmetrics_listen = "0.0.0.0:1"',
            "node.metrics_listen 0.0.0.0:1: other hosts may reach this address, and calls are neither encrypted nor"
            " authenticated, behind a shut door neither",
        ),
        ('[node]\nlisten = "127.0.0.1:99999"', "node.listen 127.0.0.1:99999: HOST:PORT or unix:PATH is needed"),
        ('[control]\npage = "unix:/run/page"', "control.page unix:/run/page: HOST:PORT is needed"),
        ('[node]\nmetrics_listen = "localhost"', "node.metrics_listen localhost: HOST:PORT is needed"),
        ("[node]\ntick_ms = 0", "node.tick_ms: must be 1 or more: 0"),
        ('[node]\ndram_evict = "fifo"', "fifo"),
        ('[node]\nroles = ["storge"]', "node.roles: no role 'storge': did you mean 'storage'?"),
        ('[node]\nroles = ["x"]', "node.roles: no role 'x': known are prefill, decode, storage"),
        ('[node]\nnvme_admit = "some"', "node.nvme_admit must be one of all, second-hit, not 'some'"),
        ('[node.compute]\nkind = "rdma"', "node.compute.kind must be ucx, tcp, loopback or auto, not 'rdma'"),
        ('[node.storage]\nkind = "rdma"', "node.storage.kind must be ucx, tcp, loopback or auto, not 'rdma'"),
        ('[node.storage]\ntraffic_class = "256"', "node.storage.traffic_class must be auto or a number from 0 to 255"),
        ('[namespaces."a"]\nttl_m = 1', "ttl_m"),
        ("[nod]\n", "unknown setting 'nod': did you mean 'node'?"),
    ],
)
def test_check_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str) -> None:
    """In one line, with exit code 2; what is right prints nothing."""
    file = tmp_path / "kvstore.toml"
    file.write_text(text)
    assert main(["config", "check", "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    file.write_text("")
    assert main(["config", "check", "--config", str(file)]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_layer_says_only_what_it_holds() -> None:
    """A value is not a table of more."""
    layer = Layer("f", {"node": {"node_id": "a"}})
    assert layer.says(("node", "node_id"))
    assert not layer.says(("node", "node_id", "x"))
    assert not layer.says(("control",))
