"""Peak memory does not grow with the number of layers, however many threads there are."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.peak_memory import memory_benchmark, peak_of_compressing

OUT = 1280
"""Rows of each expert: large enough to stand out."""


@pytest.mark.slow
def test_six_layers_take_the_memory_of_two(tmp_path: Path) -> None:
    """Of one layer, whose last group has none after it, a little less is held. Of eight experts
    that are all encoded at once weights are one group; the next one is held as well
    (`checkpoint.held`). The pieces of 8 MiB of which a base is made are one more, and some memory
    is kept for reuse."""
    benchmark = memory_benchmark()
    peaks = {}
    for layers in (2, 6):
        benchmark.make_checkpoint(tmp_path / f"layers{layers}", layers, OUT)
        peaks[layers] = peak_of_compressing(tmp_path / f"layers{layers}", "quantized-4bit", 16)
    group = benchmark.EXPERTS * OUT * benchmark.IN * 2
    assert peaks[6] - peaks[2] < 2 * group  # four layers more are twelve groups more
    assert peaks[6] < 8 * group
