"""Each import contract can fail: a forbidden import is put into a copy of the package, and lint-imports names it."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = Path(sys.executable).with_name("lint-imports")

# contract → (module that gets the import, what it imports)
FORBIDDEN = [
    ("Imports point down only", "kvstore/blocks/keys.py", "kvstore.policy"),
    ("Imports point down only", "kvstore/errors.py", "kvstore.config"),
    ("Imports point down only", "kvstore/node/app.py", "kvstore.cli"),
    (
        "Control plane, node and client speak gRPC, they never import each other",
        "kvstore/client/aio.py",
        "kvstore.node",
    ),
    (
        "Control plane, node and client speak gRPC, they never import each other",
        "kvstore/node/app.py",
        "kvstore.control",
    ),
    ("Words and decisions do no I/O", "kvstore/node/catalog.py", "time"),
    ("Words and decisions do no I/O", "kvstore/policy/evict.py", "asyncio"),
    ("LMDB is where the indexes are", "kvstore/control/app.py", "lmdb"),
    ("UCX is in one module", "kvstore/node/app.py", "ucxx"),
    ("The web framework is the page's", "kvstore/control/page/view.py", "starlette"),
]


def contracts() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its settings, for all cases: each takes back what it has put in."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "kvstore", copy / "kvstore", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def broken_contracts(package: Path) -> tuple[int, set[str]]:
    done = subprocess.run(
        [LINT, "--no-cache"],
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, set(re.findall(r"^(.+?) BROKEN\b", done.stdout, re.MULTILINE))


def test_every_contract_is_broken_below() -> None:
    """A contract that is added later needs a case of its own."""
    assert {name for name, _, _ in FORBIDDEN} == set(contracts())


def test_the_package_keeps_all_contracts(package: Path) -> None:
    """Without a forbidden import nothing is reported, so what the cases report is their import."""
    assert broken_contracts(package) == (0, set())


@pytest.mark.parametrize(("contract", "module", "imported"), FORBIDDEN)
def test_a_forbidden_import_is_named(contract: str, module: str, imported: str, package: Path) -> None:
    """lint-imports fails and names the contract."""
    file = package / module
    original = file.read_text()
    file.write_text(f"{original}\nimport {imported}\n")
    try:
        code, broken = broken_contracts(package)
    finally:
        file.write_text(original)
    assert code != 0
    assert contract in broken
