"""Products with the matrices of chosen experts on a GPU, as they are packed: kernels of Triton.

Pairs of a token and an expert are put into blocks of one expert each (`blocks`); a kernel's program
takes one block and some rows of its expert's matrix, decodes these in registers, and multiplies.
Nothing waits for the GPU, and grids depend on shapes alone, so that CUDA graphs can record it.

Triton comes with CUDA builds of torch on Linux. Tests run every kernel under its interpreter, on a
CPU; none has been run, or timed, on hardware yet.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from ders_core.later import torch


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def can_run(device: torch.device) -> bool:
    """Whether kernels can work on what is on this device."""
    return device.type == "cuda" and _installed()
