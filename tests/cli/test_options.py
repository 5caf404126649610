"""Options made from the configuration's fields."""

import argparse
import dataclasses

import pytest

from kvstore.cli.layers import load_config
from kvstore.cli.options import add_config_file, add_options, shown_size, size
from kvstore.config import MIB, Config, FabricConfig, NodeConfig
from kvstore.errors import ConfigError


def node_config(*argv: str) -> NodeConfig:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_config_file(parser)
    add_options(parser, "node")
    return load_config(parser.parse_args(argv)).node


def test_no_option_leaves_every_default() -> None:
    """The defaults are the dataclass's own."""
    assert node_config() == Config().node


def test_every_field_has_an_option() -> None:
    """A field that is added to the configuration shows up without a line in the CLI."""
    parser = argparse.ArgumentParser()
    add_options(parser, "node")
    text = parser.format_help()
    nested = {"compute", "storage"}
    for field in dataclasses.fields(NodeConfig):
        if field.name not in nested:
            assert f"--{field.name.replace('_', '-')}" in text
    for place in nested:
        for field in dataclasses.fields(FabricConfig):
            assert f"--{place}-{field.name.replace('_', '-')}" in text


def test_values_reach_their_fields() -> None:
    """Sizes, numbers, switches, lists and nested tables each arrive as their type."""
    config = node_config(
        *("--dram-bytes", "512MiB", "--ttl-ms", "5000", "--no-hugepages", "--roles", "prefill,decode"),
        *("--compute-device", "eth1", "--no-compute-cuda"),
    )
    assert (config.dram_bytes, config.ttl_ms, config.hugepages, config.roles) == (
        512 * MIB,
        5000,
        False,
        ("prefill", "decode"),
    )
    assert config.compute == FabricConfig(device="eth1", cuda=False)
    assert config.storage is None


def test_one_option_makes_the_optional_table() -> None:
    """The storage NIC exists once one of its options is given."""
    assert node_config("--storage-device", "eth2").storage == FabricConfig(device="eth2")


def test_options_lie_over_the_file(tmp_path) -> None:
    """A file sets values; the command line has the last word, setting by setting."""
    file = tmp_path / "kvstore.toml"
    file.write_text('[node]\nnode_id = "a"\ndram_bytes = 4096\n[node.compute]\ndevice = "eth0"\nrails_max = 2\n')
    config = node_config("--config", str(file), "--dram-bytes", "8KiB", "--compute-device", "eth9")
    assert (config.node_id, config.dram_bytes) == ("a", 8192)
    assert (config.compute.device, config.compute.rails_max) == ("eth9", 2)


def test_unknown_setting_of_a_file_names_its_neighbour(tmp_path) -> None:
    """A misspelt setting is refused with the one that was meant."""
    file = tmp_path / "kvstore.toml"
    file.write_text("[node]\ndram_byte = 1\n")
    with pytest.raises(ConfigError, match=r"node\.dram_byte.*dram_bytes"):
        node_config("--config", str(file))


@pytest.mark.parametrize(
    ("text", "count"),
    [("4096", 4096), ("64KiB", 65536), ("1.5GiB", 3 * 2**29), ("2gb", 2 * 10**9), ("1 mib", MIB), ("0", 0)],
)
def test_sizes(text: str, count: int) -> None:
    """Binary units have an i, decimal ones have none."""
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "-1", "12x", "1e9", "12 Ki B"])
def test_sizes_that_are_none(text: str) -> None:
    """What is no size is refused, with examples."""
    with pytest.raises(argparse.ArgumentTypeError, match="512MiB"):
        size(text)


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 64 * MIB, 3 * 2**30, 2**40 + 2**20])
def test_shown_sizes_are_exact(count: int) -> None:
    """A shown default can be typed as it is."""
    assert size(shown_size(count)) == count


def test_shown_sizes_are_short() -> None:
    """The largest unit that divides it; none for zero."""
    assert [shown_size(count) for count in (0, 1024, 3 * 2**29, 1025)] == ["0", "1KiB", "1536MiB", "1025"]
