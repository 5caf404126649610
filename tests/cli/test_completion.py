"""`--completion`: scripts that shells take, and that know what the parsers know."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.cli.main import COMMANDS
from kvstore.cli.main import main as kvstore

PROGRAMS = {"kvstore": "kvstore", "kvbench": "kvbench"}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script of each program for each shell."""
    folder = tmp_path_factory.mktemp("completion")
    for program, module in PROGRAMS.items():
        for shell in ("bash", "zsh"):
            argv = [sys.executable, "-m", module, "--completion", shell]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
            assert done.stderr == ""
            (folder / f"{program}.{shell}").write_text(done.stdout)
    return folder


def completed(script: Path, line: str) -> set[str]:
    """What bash offers after a line, whose last word may be empty."""
    words = line.split(" ")
    program = words[0]
    asking = (
        f"source {script}\n"
        f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}\n"
        f"COMP_LINE={line!r}; COMP_POINT={len(line)}\n"
        f"COMPREPLY=(); _shtab_{program} {program} {words[-1]!r} {words[-2]!r}\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", asking], capture_output=True, text=True, timeout=30, cwd=script.parent)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("kvstore ", set(COMMANDS)),
        ("kvstore ad", {"admin"}),
        ("kvstore admin w", {"watch"}),
        ("kvstore admin ttl ", {"get", "set", "remove"}),
        ("kvstore admin device ", {"enable", "disable"}),
        ("kvstore node --nvme-ad", {"--nvme-admit"}),
        ("kvstore admin watch --kind node_l", {"node_lost"}),
        ("kvstore --completion ", {"bash", "zsh"}),
        ("kvbench repo", {"report"}),
        ("kvbench match --j", {"--json"}),
    ],
)
def test_what_bash_offers(scripts: Path, line: str, offered: set[str]) -> None:
    """Commands, their commands, options, choices."""
    assert offered <= completed(scripts / f"{line.split(' ')[0]}.bash", line)


def test_files_are_offered(scripts: Path) -> None:
    """Where an option names one."""
    assert "kvstore.zsh" in completed(scripts / "kvstore.bash", "kvstore admin import kvs")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_shells_read_the_scripts(scripts: Path, program: str, shell: str) -> None:
    """Without a complaint."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", scripts / f"{program}.{shell}"], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_shell_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    """A usage error that names those that are."""
    with pytest.raises(SystemExit) as ended:
        kvstore(["--completion", "sh"])
    assert ended.value.code == 2
    assert "zsh" in capsys.readouterr().err
