"""Choose the device that computes, and describe it."""

from __future__ import annotations

import platform

from ders_core.errors import DersError
from ders_core.later import torch

CHOICES = ("auto", "cpu", "cuda")


def available_devices() -> list[str]:
    """The devices that can be chosen on this machine."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


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
