"""Tensors that go from the CPU to another device, and nothing waits for them."""

from __future__ import annotations

from ders_core.later import torch


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; itself if it is there. From the CPU to a GPU it goes by pinned memory:
    from any other, the copy would wait until the GPU has done all before it."""
    if tensor.device.type != "cpu" or device.type == "cpu":
        return tensor.to(device)
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)
