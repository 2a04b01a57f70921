"""Compiled loops against the same in plain torch and numpy: ns an entry, and how many times faster.

Each is called once before it is timed, and its least processor time of five is told, on one thread.
Run: `python benchmarks/kernels.py`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import numba
import numpy as np
import torch

import ders_core
from ders_core.codecs import EncodeContext, Entropy
from ders_core.codecs.coding.prng import random_uniform
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.fitting.rounding import Nearest, Unbiased

SHAPE = (2048, 1024)
ENTRIES = SHAPE[0] * SHAPE[1]
REPEATS = 5

Work = Callable[[], object]


def seconds(work: Work) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def works() -> dict[str, Work]:
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(SHAPE, generator=generator)
    values = delta.flatten()
    rows, columns = (torch.rand(length, generator=generator) ** 4 + 0.01 for length in SHAPE)
    context = EncodeContext(torch.bfloat16, 1, None, Curvature(columns, rows))
    found: dict[str, Work] = {
        "unbiased rounding, step 2 σ": lambda: Unbiased(1).coded(values, 2.0, None, 1),
        "unbiased rounding, step σ/10": lambda: Unbiased(1).coded(values, 0.1, None, 1),
        "nearest multiple, step σ": lambda: Nearest(0.44).coded(values, 1.0, None, 1),
        "random numbers": lambda: random_uniform(ENTRIES, 1),
    }
    for bits in (0.2, 1, 5):
        codec = Entropy(bits=bits, rounding="unbiased", steps="sensitive")
        parts = codec.encode(delta, context)
        found[f"entropy, {bits} bits: encode"] = partial(codec.encode, delta, context)
        found[f"entropy, {bits} bits: decode"] = partial(codec.decode, parts, SHAPE, context)
    return found


def main() -> None:
    torch.set_num_threads(1)
    versions = {"torch": torch, "numba": numba, "numpy": np, "ders-studio": ders_core}
    print(
        ", ".join(f"{name} {module.__version__}" for name, module in versions.items()),
        f"on {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    )
    print(f"{SHAPE[0]} × {SHAPE[1]} entries; ns an entry")
    print(f"{'':32}{'loops':>8}{'plain':>8}{'ratio':>8}")
    for name, work in works().items():
        fast = 1e9 * seconds(work) / ENTRIES
        with patch("ders_core.compute.kernels._installed", return_value=False):
            slow = 1e9 * seconds(work) / ENTRIES
        print(f"{name:32}{fast:8.2f}{slow:8.2f}{slow / fast:8.1f}", flush=True)


if __name__ == "__main__":
    main()
