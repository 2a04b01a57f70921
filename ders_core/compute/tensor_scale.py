"""The scale of `ders_core.compute.magnitude` as a tensor: on a GPU, nothing waits for it."""

from __future__ import annotations

from ders_core.compute.magnitude import COMFORTABLE, scale_of
from ders_core.later import torch

LEAST, BIAS, MANTISSA = -126, 127, 23
"""Of float32: the least exponent of a power of two with all its digits, what is added to exponents
in bits, and the bits of a mantissa."""


def tensor_scale_of(values: torch.Tensor) -> torch.Tensor:
    """`magnitude.scale_of`, float32 `[]` on the device of the values, which are floats."""
    if values.device.type == "cpu":  # there numbers are quicker than tensors of one
        return torch.tensor(scale_of(values))
    return scale_from_bits(values)


def scale_from_bits(values: torch.Tensor) -> torch.Tensor:
    """The same by operations on tensors alone."""
    if not values.numel():
        return torch.ones((), device=values.device)
    least, most = torch.aminmax(values)
    largest = torch.maximum(-least, most).float()
    exponent = (torch.frexp(largest).exponent - 1).clamp(LEAST, BIAS)
    power = ((exponent + BIAS) << MANTISSA).view(torch.float32)
    is_far = torch.isfinite(largest) & (largest > 0) & (exponent.abs() > COMFORTABLE)
    return torch.where(is_far, power, 1.0)
