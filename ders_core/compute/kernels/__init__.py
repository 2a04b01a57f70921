"""Compiled loops, for what torch and numpy would make many passes over memory of.

numba compiles a loop at its first call and keeps the machine code beside its source, as Python
keeps bytecode. Whoever calls a loop has the same in plain torch or numpy, which runs where numba is
not installed, and on GPUs; tests compare both bit by bit. Loops let other threads run.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from ders_core.later import torch


@cache
def _installed() -> bool:
    return find_spec("numba") is not None


def takes(*tensors: torch.Tensor) -> bool:
    """Whether loops can work on these: contiguous, on the CPU, with numba installed."""
    return _installed() and all(
        tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors
    )
