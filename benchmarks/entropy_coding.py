"""The entropy coder's compiled loops against the same in plain torch and numpy.

ns an entry, millions of entries a second, the share of the rate at which this machine copies
weights in bfloat16, and how many times faster.

Each is called once before it is timed, and its least processor time of five is told, on one thread
(plain ones once, which takes minutes where a matrix is large). Then what streams take, in bits an
entry.
Run: `python benchmarks/entropy_coding.py [OUT IN] [--no-plain]`.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from functools import partial
from unittest.mock import patch

import numba
import numpy as np
import torch
from kernels import SHAPE, Work, seconds

import ders_core
from ders_core.codecs import Codec, EncodeContext, Entropy, Lossless
from ders_core.codecs.coding.prng import random_uniform
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.fitting.rounding import Nearest, Unbiased

BITS = (0.06, 0.2, 0.6, 1, 1.3, 5)


def works(delta: torch.Tensor) -> Iterator[tuple[str, Work]]:
    values = delta.flatten()
    yield "unbiased rounding, step 2 σ", lambda: Unbiased(1).coded(values, 2.0, 0)
    yield "unbiased rounding, step σ/10", lambda: Unbiased(1).coded(values, 0.1, 0)
    yield "nearest multiple, step σ", lambda: Nearest(0.44).coded(values, 1.0, 0)
    yield "random numbers", lambda: random_uniform(delta.numel(), 1)


def streams(delta: torch.Tensor) -> Iterator[tuple[str, Codec, torch.Tensor, torch.Tensor]]:
    """(name, codec, weight, base)."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(delta.shape, generator=generator).bfloat16()
    weight = (base.float() + 0.03 * delta).bfloat16()
    for bits in BITS:
        codec = Entropy(bits=bits, rounding="unbiased", steps="sensitive")
        yield f"entropy, {bits} bits", codec, weight, base
    for share in (0.03, 0.3):
        near = (base.float() + share * delta).bfloat16()
        yield f"lossless, deltas of {share} σ", Lossless(), near, base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", nargs="*", type=int, default=list(SHAPE))
    parser.add_argument("--no-plain", action="store_true", help="compiled loops alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    versions = {"torch": torch, "numba": numba, "numpy": np, "ders-studio": ders_core}
    print(
        ", ".join(f"{name} {module.__version__}" for name, module in versions.items()),
        f"on {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    )
    shape = (given.shape[0], given.shape[1])
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(shape, generator=generator)
    rows, columns = (torch.rand(length, generator=generator) ** 4 + 0.01 for length in shape)
    context = EncodeContext(torch.bfloat16, 1, None, Curvature(columns, rows))
    source, target = delta.bfloat16(), torch.empty(shape, dtype=torch.bfloat16)
    copying = 1e9 * seconds(lambda: target.copy_(source), 20) / delta.numel()
    print(
        f"{shape[0]} × {shape[1]} entries; copying weights in bfloat16: {copying:.2f} ns an entry"
    )
    print(f"{'':34}{'ns':>8}{'M/s':>8}{'of copy':>9}{'plain ns':>10}{'ratio':>7}")

    def tell(name: str, work: Work) -> None:
        work()
        fast = 1e9 * seconds(work) / delta.numel()
        told = f"{name:34}{fast:8.2f}{1e3 / fast:8.0f}{copying / fast:9.1%}"
        if not given.no_plain:
            with patch("ders_core.compute.kernels._installed", return_value=False):
                slow = 1e9 * seconds(work, 1) / delta.numel()
            told += f"{slow:10.1f}{slow / fast:7.1f}"
        print(told, flush=True)

    for name, work in works(delta):
        tell(name, work)
    sizes = {}
    for name, codec, weight, base in streams(delta):
        parts = codec.pack(weight, base, context)
        sizes[name] = 8 * parts["stream"].numel() / delta.numel()
        tell(f"{name}: pack", partial(codec.pack, weight, base, context))
        tell(f"{name}: unpack", partial(codec.unpack, parts, base, context))
    print("\nbits an entry")
    for name, bits in sizes.items():
        print(f"{name:34}{bits:10.4f}")


if __name__ == "__main__":
    main()
