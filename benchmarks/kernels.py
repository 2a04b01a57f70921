"""Compiled loops against the same in plain torch and numpy: ns an entry, millions of entries a
second, how many times faster, and the time as a multiple of a copy of the same bytes. Those of
entropy coding are in `entropy_coding.py`.

Each is called once before it is timed, and its least processor time of five is told, on one thread.
The copy is of what the work reads and writes: its inputs and outputs, once. Lines that begin with
"one pass" are of a matrix that no cache holds.
Run: `python benchmarks/kernels.py [word ...]`; words choose the lines that contain one of them.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest.mock import patch

import numba
import numpy as np
import torch

import ders_core
from ders_core.analysis.chunk_sums import Workspace
from ders_core.codecs import Codec, EncodeContext, Quantized, Sparse
from ders_core.codecs.coding.block_draws import BlockDraw
from ders_core.codecs.coding.prng import random_positions
from ders_core.codecs.synthesis import difference
from ders_core.compute.pieces import pieces
from ders_core.decompose.averages import mean_of, median_of
from ders_core.decompose.distortion import compare, is_finite

SHAPE, LARGE = (2048, 1024), (4096, 4096)
ENTRIES, LARGE_ENTRIES = SHAPE[0] * SHAPE[1], LARGE[0] * LARGE[1]
REPEATS = 5

Work = Callable[[], object]

EXPERTS = 8
QUANTIZED: Mapping[str, Mapping[str, Any]] = {
    "1 bit": {"bits": 1},
    "2 bits": {"bits": 2},
    "4 bits": {"bits": 4},
    "8 bits": {"bits": 8},
    "ternary": {"grid": "ternary"},
    "4 bits, affine": {"bits": 4, "grid": "affine"},
    "4 bits, normal": {"bits": 4, "grid": "normal"},
    "6 bits, normal": {"bits": 6, "grid": "normal"},
    "4 bits, unbiased": {"bits": 4, "gain": "unbiased"},
}
ONE_PASS: Mapping[str, Mapping[str, Any]] = {
    "4 bits": {"bits": 4},
    "4 bits, affine": {"bits": 4, "grid": "affine"},
    "4 bits, normal": {"bits": 4, "grid": "normal"},
    "4 bits, learned": {"bits": 4, "grid": "learned"},
    "4 bits, scales in 8 bits": {"bits": 4, "scale_bits": 8},
    "ternary": {"grid": "ternary"},
}
"""Searched, coded and packed in one pass; levels are learnt in two passes before it."""

SPARSE: Mapping[str, Mapping[str, Any]] = {
    "drop 0.9": {"drop_rate": 0.9},
    "drop 0.9, not in blocks": {"drop_rate": 0.9, "draws": "matrix"},
    "drop 0.9, largest": {"drop_rate": 0.9, "method": "magnitude"},
}


def seconds(work: Work, repeats: int = REPEATS) -> float:
    """The least processor time of several calls."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def nbytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


class SumsOfSimilarity:
    """What an analysis sums of a group's weights, a chunk at a time."""

    def __init__(self, experts: torch.Tensor) -> None:
        self._experts = experts

    def __call__(self) -> None:
        shape, dtype = (len(self._experts), *SHAPE), self._experts.dtype
        workspace = Workspace(shape, dtype, torch.device("cpu"), every=14)
        for part in pieces(SHAPE[0], workspace.step):
            workspace.sums(0, self._experts, part)


def dense_works() -> dict[str, tuple[Work, int]]:
    """What is done to whole weights: the work, and the bytes of its inputs and outputs."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(SHAPE, generator=generator) * 0.02
    noise = torch.randn(EXPERTS, *SHAPE, generator=generator) * 0.004
    experts = (start + noise).bfloat16()
    base, weight = mean_of(experts, None, EXPERTS).bfloat16(), experts[0]
    context = EncodeContext(torch.bfloat16, 1)
    weighed = EncodeContext(torch.bfloat16, 1, torch.rand(SHAPE[1], generator=generator))
    found: dict[str, tuple[Work, int]] = {
        "delta": (partial(difference, weight, base), nbytes(weight, base) + 4 * ENTRIES),
        "errors": (partial(compare, weight, experts[1], base), nbytes(weight, weight, base)),
        "is finite": (partial(is_finite, weight), nbytes(weight)),
    }
    averages: dict[str, Callable[..., torch.Tensor]] = {
        "mean": partial(mean_of, weights=None, count=8),
        "median": median_of,
    }
    for name, average in averages.items():
        found[f"{name} of {EXPERTS}, an entry of each"] = (
            partial(average, experts),
            nbytes(experts, base),
        )
    sums = SumsOfSimilarity(experts)
    found[f"sums of similarity of {EXPERTS}, an entry of each"] = (sums, nbytes(experts, base))
    codecs: dict[str, Codec] = {
        **{f"quantized, {name}": Quantized(**fields) for name, fields in QUANTIZED.items()},
        **{f"sparse, {name}": Sparse(**fields) for name, fields in SPARSE.items()},
    }
    for name, codec in codecs.items():
        parts = codec.pack(weight, base, context)
        moved = nbytes(weight, base, *parts.values())
        found[f"{name}: encode"] = (partial(codec.pack, weight, base, context), moved)
        found[f"{name}: decode"] = (partial(codec.unpack, parts, base, context), moved)
    codec = codecs["quantized, 4 bits"]
    parts = codec.pack(weight, base, context)
    found["quantized, 4 bits, weighed: encode"] = (
        partial(codec.pack, weight, base, weighed),
        nbytes(weight, base, *parts.values()),
    )
    return found


def one_pass_works() -> dict[str, tuple[Work, int]]:
    """The same of encoding a large matrix, with and without weights of columns."""
    generator = torch.Generator().manual_seed(2)
    base = (torch.randn(LARGE, generator=generator) * 0.02).bfloat16()
    weight = (base.float() + torch.randn(LARGE, generator=generator) * 0.004).bfloat16()
    contexts = {
        "": EncodeContext(torch.bfloat16, 1),
        ", weighed": EncodeContext(torch.bfloat16, 1, torch.rand(LARGE[1], generator=generator)),
    }
    found: dict[str, tuple[Work, int]] = {}
    for name, fields in ONE_PASS.items():
        codec = Quantized(**fields)
        for remark, context in contexts.items():
            moved = nbytes(weight, base, *codec.pack(weight, base, context).values())
            work = partial(codec.pack, weight, base, context)
            found[f"one pass, {name}{remark}"] = work, moved
    return found


def positions_works() -> dict[str, tuple[Work, int]]:
    """The same of drawing positions."""
    kept = ENTRIES // 10
    draw = BlockDraw(ENTRIES, kept, 1)
    return {
        "positions of blocks, a tenth": (lambda: [*draw.chunks(torch.device("cpu"))], 8 * kept),
        "random positions, a tenth": (partial(random_positions, ENTRIES, kept, 1), 8 * kept),
    }


def copied(count: int) -> float:
    """Seconds to copy so many bytes in all, half of them read and half written."""
    source = torch.ones(max(count // 2, 1), dtype=torch.uint8)
    target = torch.empty_like(source)
    return seconds(lambda: target.copy_(source))


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    versions = {"torch": torch, "numba": numba, "numpy": np, "ders-studio": ders_core}
    print(
        ", ".join(f"{name} {module.__version__}" for name, module in versions.items()),
        f"on {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    )
    shapes = (f"{out} × {width}" for out, width in (SHAPE, LARGE))
    print(f"{', one pass '.join(shapes)} entries; loops and plain: ns an entry")
    print(f"{'':40}{'loops':>8}{'M/s':>8}{'plain':>8}{'ratio':>8}{'/ copy':>8}")
    for name, (work, moved) in (dense_works() | positions_works() | one_pass_works()).items():
        if words and not any(word in name for word in words):
            continue
        large = name.startswith("one pass")
        entries = LARGE_ENTRIES if large else ENTRIES * (EXPERTS if "of each" in name else 1)
        work()
        fast, copy = 1e9 * seconds(work) / entries, 1e9 * copied(moved) / entries
        with patch("ders_core.compute.kernels._installed", return_value=False):
            slow = 1e9 * seconds(work) / entries
        numbers = f"{fast:8.2f}{1e3 / fast:8.0f}{slow:8.2f}{slow / fast:8.1f}{fast / copy:8.1f}"
        print(f"{name:40}{numbers}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
