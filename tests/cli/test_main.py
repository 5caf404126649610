"""The console script: overview, errors, and what is imported for it."""

import subprocess
import sys

import pytest

from kvstore.cli.commands import Command, run_program
from kvstore.cli.main import COMMANDS, main


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """--help lists the commands and succeeds."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and command.help in text for name, command in COMMANDS.items())


@pytest.mark.parametrize("argv", [[], ["sevre"], ["--sevre"]])
def test_bad_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """No command, an unknown one and an unknown option are usage errors."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "usage: kvstore" in capsys.readouterr().err


def test_overview_imports_nothing_heavy() -> None:
    """`kvstore --help` does without gRPC, numpy, rich and the commands themselves."""
    script = (
        "import sys\nfrom kvstore.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'grpc', 'numpy', 'rich', 'asyncio', 'kvstore.cli.admin'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command of the table can be imported and shows its options."""
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: kvstore {name}" in capsys.readouterr().out


def test_abbreviated_options_are_refused() -> None:
    """An option that is added later must not change what an older command line means."""
    with pytest.raises(SystemExit) as ended:
        main(["control", "--liste", "x"])
    assert ended.value.code == 2


def test_our_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A configuration that cannot be read ends with exit code 2 and one line, not a traceback."""
    assert main(["control", "--config", "/nowhere/kvstore.toml"]) == 2
    assert capsys.readouterr().err == "kvstore: /nowhere/kvstore.toml: No such file or directory\n"


def test_a_bug_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that is not ours keeps its traceback."""
    monkeypatch.setattr("kvstore.cli.admin.run", lambda args: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run_program("p", "", {"a": Command("kvstore.cli.admin", "")}, ["a", "nodes", "--control", "x"])
