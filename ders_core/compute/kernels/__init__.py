"""Compiled loops, for what torch and numpy would make many passes over memory of.

numba compiles a loop at its first call and keeps the machine code beside its source, as Python
keeps bytecode. Whoever calls a loop has the same in plain torch or numpy, which runs where numba is
not installed, and on GPUs; tests compare both bit by bit. Loops let other threads run.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from ders_core.later import np, torch


@cache
def _installed() -> bool:
    return find_spec("numba") is not None


@cache
def _kinds() -> dict[torch.dtype, int]:
    return {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}


def kind_of(dtype: torch.dtype) -> int:
    """The number by which `floats` knows a dtype whose bits loops convert."""
    return _kinds()[dtype]


def is_kind(dtype: torch.dtype) -> bool:
    """Whether `kind_of` knows this dtype."""
    return dtype in _kinds()


def can_run(device: torch.device) -> bool:
    """Whether loops can work on what is on this device."""
    return device.type == "cpu" and _installed()


def takes(*tensors: torch.Tensor) -> bool:
    """Whether loops can work on these: contiguous, on the CPU, not tracked by autograd, with numba
    installed."""
    return _installed() and all(
        tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.requires_grad
        for tensor in tensors
    )


def takes_stored(*tensors: torch.Tensor) -> bool:
    """The same for loops on stored floats: all of one dtype that `kind_of` knows."""
    dtype = tensors[0].dtype
    return (
        dtype in _kinds() and all(tensor.dtype == dtype for tensor in tensors) and takes(*tensors)
    )


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The bits of floats that `kind_of` knows, uint16 or uint32; shares memory."""
    same = torch.uint16 if tensor.dtype.itemsize == 2 else torch.uint32
    view: np.ndarray = tensor.view(same).numpy()
    return view
