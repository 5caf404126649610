"""Configuration: what a file says lies over the defaults; what nobody knows or can mean is refused, with its place."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from kvstore.config import ClientConfig, Config, ControlConfig, DoorConfig, FabricConfig, NodeConfig, option, overlay
from kvstore.errors import ConfigError


def load(folder: Path, text: str) -> Config:
    path = folder / "kvstore.toml"
    path.write_text(text)
    return Config.load(path)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    """Every value has a default, written once, in the dataclasses."""
    assert load(tmp_path, "") == Config()


def test_a_file_lies_over_the_defaults(tmp_path: Path) -> None:
    """What it names changes, nested tables too; the rest stays."""
    config = load(
        tmp_path,
        """
        [control]
        heartbeat_ms = 100
        [node]
        roles = ["prefill", "storage"]
        hugepages = false
        [node.compute]
        kind = "loopback"
        [node.storage]
        device = "eth1"
        """,
    )
    assert config.control.heartbeat_ms == 100
    assert config.node.roles == ("prefill", "storage")
    assert config.node.hugepages is False
    assert config.node.compute == FabricConfig(kind="loopback")
    assert config.node.storage == FabricConfig(device="eth1")
    assert config.node.dram_bytes == NodeConfig().dram_bytes
    assert config.client == Config().client


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"dram_byte": 1}, r"unknown setting 'dram_byte': did you mean 'dram_bytes'\?"),
        ({"compute": {"knid": "ucx"}}, r"unknown setting 'compute.knid': did you mean 'kind'\?"),
        ({"xyzzy": 1}, r"unknown setting 'xyzzy'$"),
        ({"dram_bytes": "1GiB"}, r"dram_bytes: int is needed, not '1GiB'"),
        ({"dram_bytes": True}, r"dram_bytes: int is needed, not True"),
        ({"dram_bytes": 1.5}, r"dram_bytes: int is needed, not 1.5"),
        ({"dram_bytes": -1}, r"dram_bytes: must be 0 or more: -1"),
        ({"tick_ms": 0}, r"tick_ms: must be 1 or more: 0"),
        ({"nvme_clean_percent": 101}, r"nvme_clean_percent: must be 100 or less: 101"),
        ({"hugepages": 1}, r"hugepages: bool is needed, not 1"),
        ({"listen": 80}, r"listen: str is needed, not 80"),
        ({"roles": "prefill"}, r"roles: a list of strings is needed, not 'prefill'"),
        ({"roles": ["prefill", 1]}, r"roles: a list of strings is needed"),
        ({"compute": "ucx"}, r"compute: a table is needed, not 'ucx'"),
        ({"storage": "eth1"}, r"storage: a table is needed, not 'eth1'"),
        ({"storage": {"device": 1}}, r"storage.device: str is needed, not 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], expected: str) -> None:
    """The text names the place, what is needed there, and the nearest name that is known."""
    with pytest.raises(ConfigError, match=expected):
        overlay(NodeConfig(), values)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(b"[node", "kvstore.toml: "), (b"[node]\nlisten = '\xff'", "kvstore.toml: "), (b"node = 3", "node: a table")],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, raw: bytes, expected: str) -> None:
    """Broken TOML, text that is not UTF-8, a value in a table's place: each is a ConfigError."""
    path = tmp_path / "kvstore.toml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=expected):
        Config.load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The path and the reason are in the text."""
    with pytest.raises(ConfigError, match=r"absent.toml: No such file"):
        Config.load(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (ControlConfig, ["heartbeat_ms", "node_lost_ms", "page_ms"]),
        (NodeConfig, ["tick_ms", "lease_ms", "hold_ms_max", "progress_ms", "connect_ms", "nvme_depth_max"]),
        (NodeConfig, ["nvme_errors_max", "piece_bytes", "lane_bytes_max", "slab_bytes", "nvme_slab_bytes"]),
        (ClientConfig, ["deadline_ms", "connect_ms", "match_ms"]),
        (DoorConfig, ["connections_max", "calls_max"]),
        (FabricConfig, ["segment_bytes"]),
    ],
)
def test_none_is_refused_where_nothing_goes_without(table: Any, names: list[str]) -> None:
    """A loop would turn without a pause, a wait end before it began, a queue take nothing."""
    for name in names:
        with pytest.raises(ConfigError, match=f"{name}: must be 1 or more: 0"):
            overlay(table(), {name: 0})
        assert getattr(overlay(table(), {name: 1}), name) == 1


def test_configs_cannot_be_changed() -> None:
    """They are frozen, and no default is a value that could be."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().node.dram_bytes = 1  # type: ignore[misc]  # what is under test
    with pytest.raises(TypeError):
        option([], "a list")


def test_rules_of_namespaces_are_tables_by_pattern(tmp_path: Path) -> None:
    """Their fields are checked by the node; here, that they are tables at all."""
    config = load(tmp_path, '[namespaces."llama-*"]\nttl_ms = 5\n[namespaces."qwen"]\ncopies = 2\n')
    assert {pattern: dict(fields) for pattern, fields in config.namespaces.items()} == {
        "llama-*": {"ttl_ms": 5},
        "qwen": {"copies": 2},
    }
    for text in ("namespaces = 3", "namespaces.llama = 3"):
        with pytest.raises(ConfigError, match=r"namespaces: tables are needed, one per pattern"):
            load(tmp_path, text)


_TABLES = [getattr(Config(), f.name) for f in dataclasses.fields(Config)]


@pytest.mark.parametrize("cls", [type(table) for table in _TABLES if dataclasses.is_dataclass(table)] + [FabricConfig])
def test_every_option_is_explained(cls: Any) -> None:
    """The command line shows these texts, and units stand last in names that have one."""
    for field in dataclasses.fields(cls):
        assert field.metadata["help"]
        if field.type in (int, "int"):
            ends = (
                "_bytes",
                "_bytes_max",
                "_bytes_min",
                "_ms",
                "_ms_max",
                "_max",
                "_threads",
                "_layers",
                "_percent",
                "_per_s",
            )
            assert field.name.endswith(ends), field.name
