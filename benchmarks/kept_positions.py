"""Which entries of a matrix are kept: a bitmap, gaps in Rice code, and the entropy coder's gaps.

Of so many entries a share is drawn at random. bits: that the positions take, for an entry of the
matrix; over: by how much that is more than their entropy. Rice, ideal: Σ (quotient + 1 + k) bits of
all gaps at the best k, added up by itself. ns: processor time on one thread for an entry of the
matrix, the least of five; plain: how many times longer the same takes without compiled loops.
Rice codes and bitmaps are encoded from sorted positions and decoded to them, as `sparse` does; the
coder of `entropy` is given a level for each entry, and gives back where the rare ones are, or
levels.
Run: `python benchmarks/kept_positions.py [ENTRIES]`.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import numba
import numpy as np
import torch
from kernels import seconds

import ders_core
from ders_core.codecs.coding import level_stream, rice
from ders_core.codecs.coding.bitmaps import bitmap_of, positions_in

KEPT = (0.5, 0.1, 0.02)
LEVELS = np.array([0.0, 1.0], np.float32)


@dataclass(frozen=True)
class Way:
    """encode: the bytes. decode: from them."""

    encode: Callable[[], torch.Tensor]
    decode: Callable[[torch.Tensor], object]


def ideal_rice_bits(positions: np.ndarray, low_bits: int) -> int:
    """Σ (quotient + 1 + k) of all gaps."""
    gaps = np.diff(positions, prepend=-1) - 1
    return int((gaps >> low_bits).sum()) + len(gaps) * (1 + low_bits)


def best_low_bits(positions: np.ndarray) -> int:
    return min(range(16), key=partial(ideal_rice_bits, positions))


def ways(positions: torch.Tensor, entries: int, low_bits: int) -> dict[str, Way]:
    count = len(positions)
    codes = np.zeros(entries, np.uint16)
    codes[positions.numpy()] = 1
    counts = np.array([entries - count, count])
    common = int(counts.argmax())

    def coded() -> torch.Tensor:
        return level_stream.write(None, LEVELS, common, [codes], counts[None]).tensor()

    return {
        "bitmap": Way(
            lambda: bitmap_of(positions, entries),
            lambda packed: positions_in(packed, entries, count),
        ),
        f"Rice, k = {low_bits}": Way(
            lambda: rice.encode(positions, low_bits),
            lambda packed: rice.decode(packed, low_bits, count),
        ),
        "entropy coder": Way(coded, lambda packed: level_stream.read(packed, (1, entries))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("entries", nargs="?", type=int, default=1 << 22)
    entries = parser.parse_args().entries
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, numba {numba.__version__}, numpy {np.__version__}, "
        f"ders-studio {ders_core.__version__} on {platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}; other work at the start: "
        f"{os.getloadavg()[0]:.1f} processes; {entries} entries\n"
        f"{'':26}{'bits':>8}{'over':>8}{'encode ns':>11}{'plain':>7}{'decode ns':>11}{'plain':>7}"
    )
    for share in KEPT:
        drawn = torch.rand(entries, generator=torch.Generator().manual_seed(0)) < share
        positions = drawn.nonzero().flatten()
        kept = len(positions) / entries
        entropy = -kept * math.log2(kept) - (1 - kept) * math.log2(1 - kept)
        low_bits = best_low_bits(positions.numpy())

        ideal = ideal_rice_bits(positions.numpy(), low_bits) / entries
        print(f"keep {share:4}: {'entropy':15}{entropy:8.4f}")
        print(f"keep {share:4}: {'Rice, ideal':15}{ideal:8.4f}{ideal / entropy - 1:8.1%}")
        for name, way in ways(positions, entries, low_bits).items():
            packed = way.encode()
            rest = ""
            for work in (way.encode, partial(way.decode, packed)):
                work()
                fast = seconds(work)
                with patch("ders_core.compute.kernels._installed", return_value=False):
                    slow = seconds(work, 1)
                rest += f"{1e9 * fast / entries:11.2f}{slow / fast:7.1f}"
            bits = 8 * packed.numel() / entries
            print(
                f"keep {share:4}: {name:15}{bits:8.4f}{bits / entropy - 1:8.1%}{rest}", flush=True
            )


if __name__ == "__main__":
    main()
