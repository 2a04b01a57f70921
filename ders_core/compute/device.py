"""Choose the device that computes, and describe it."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ders_core.errors import DersError
from ders_core.later import torch

CHOICES = ("auto", "cpu", "cuda")


def available_devices() -> list[str]:
    """The devices that can be chosen on this machine. Takes no time to import torch."""
    has_cuda = torch.cuda.is_available() if "torch" in sys.modules else _finds_cuda()
    return ["cpu", "cuda"] if has_cuda else ["cpu"]


@cache
def _finds_cuda() -> bool:
    """What `torch.cuda.is_available` says, as far as that is known without importing torch: whether
    torch was built for CUDA, and the driver has a device. torch is asked if it was built for
    another kind of GPU."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    with suppress(OSError):
        built = _BUILT.findall(Path(spec.origin).with_name("version.py").read_text())
        if not built:
            return False
        if built == ["cuda"]:
            return _driver_devices() > 0
    return torch.cuda.is_available()


_BUILT = re.compile(r"^(cuda|hip|xpu)\b.*= *'", re.MULTILINE)
"""In torch's version.py: the GPUs that it was built for, the others being None."""


def _driver_devices() -> int:
    """How many GPUs CUDA's driver shows this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def resolve_device(name: str) -> torch.device:
    """The device of a name; `auto` is the GPU if there is one.

    Raises DersError if the name is unknown or there is no such device.
    """
    if name not in CHOICES:
        raise DersError(f"unknown device {name!r}; choose one of {', '.join(CHOICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise DersError("there is no CUDA device on this machine; choose cpu or auto")
    if name == "auto":
        return torch.device(available_devices()[-1])
    return torch.device(name)


def device_label(device: torch.device | str) -> str:
    """Text such as 'NVIDIA H200' or 'CPU (x86_64, 2 threads)'."""
    chosen = torch.device(device)
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
