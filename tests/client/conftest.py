"""The double of CuPy, for tests of device code on machines without a device."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def cupy_double() -> Any:
    """A module object that stands in for `cupy`; not installed."""
    spec = importlib.util.spec_from_file_location("cupy_double", Path(__file__).parent / "cupy_double.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CupyDouble()
