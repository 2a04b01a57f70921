"""Peak memory does not grow with the number of layers, however many threads there are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "memory.py"
    spec = importlib.util.spec_from_file_location("memory_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_four_layers_take_the_memory_of_one(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setattr(benchmark, "OUT", 1280)  # large enough to stand out
    peaks = benchmark.measure("quantized-4bit", (1, 4), 16)
    group = benchmark.EXPERTS * benchmark.OUT * benchmark.IN * 2
    assert peaks[4] - peaks[1] < 2 * group  # three layers more are nine groups more
    assert peaks[4] < 8 * group
