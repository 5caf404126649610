"""The systemd units and the configuration beside them, held against the program that they start."""

import configparser
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from kvstore.cli.main import main
from kvstore.cli.process import STOP_DEADLINE_S
from kvstore.config import Config

DEPLOY = Path(__file__).parents[2] / "docs/deploy"
UNITS = sorted(DEPLOY.glob("*.service"))


def service(unit: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return parser["Service"]


def test_there_is_a_unit_for_each_server() -> None:
    """A control plane and a node; `serve` is for trying."""
    assert [unit.stem for unit in UNITS] == ["kvstore-control", "kvstore-node"]


def test_the_configuration_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    """By the same check that operators run; nothing of it is open to other hosts."""
    assert main(["config", "check", "--config", str(DEPLOY / "kvstore.toml")]) == 0
    assert capsys.readouterr() == ("", "")
    assert not Config.load(DEPLOY / "kvstore.toml").node.insecure


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_what_there_is(unit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its command and options exist, and it waits longer than the process takes to stop."""
    _program, *argv = shlex.split(service(unit)["ExecStart"])
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--help"])
    assert ended.value.code == 0
    assert f"usage: kvstore {unit.stem.removeprefix('kvstore-')}" in capsys.readouterr().out
    assert int(service(unit)["TimeoutStopSec"]) > STOP_DEADLINE_S


def test_paths_lie_in_the_directories_that_systemd_makes() -> None:
    """Nothing else is writable for the services, and each directory is its own service's alone."""
    config = Config.load(DEPLOY / "kvstore.toml")
    paths = [
        (config.control.index_path, "control", "State", "/var/lib"),
        (config.node.socket, "node", "Runtime", "/run"),
    ]
    for path, name, kind, root in paths:
        made = service(DEPLOY / f"kvstore-{name}.service")
        assert Path(path).parent in directories(made, kind, root)
        assert made[f"{kind}DirectoryMode"] == "0700"
    made = service(DEPLOY / "kvstore-node.service")
    assert {Path(path) for path in config.node.nvme_paths} <= directories(made, "State", "/var/lib")


def test_services_have_a_directory_for_temporary_files() -> None:
    """Of their own: the host's is read-only for them, and UCX does not start without one."""
    for unit in UNITS:
        assert service(unit)["ProtectSystem"] == "strict"
        assert service(unit)["PrivateTmp"] == "yes"


def directories(unit: Mapping[str, str], kind: str, root: str) -> set[Path]:
    return {Path(root, name) for name in unit[f"{kind}Directory"].split()}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """With a program that exists in place of the installed one."""
    for unit in UNITS:
        text = unit.read_text().replace("/opt/kvstore/bin/kvstore", sys.executable).replace("User=kvstore", "User=root")
        (tmp_path / unit.name).write_text(text)
    argv = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in UNITS)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "kvstore-" in line]) == (0, [])
