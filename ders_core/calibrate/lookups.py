"""Observe every lookup of an embedding in a forward pass, and the gradient that comes back to it.

A lookup is no product; and where it begins the graph of gradients, no weight asks for any. So each
lookup of a matrix that is measured begins a graph of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ders_core.calibrate.other_sums import OtherSums

_FUNCTION = torch.nn.functional.embedding
_OPERATION = torch.embedding


class LookupObserver(TorchFunctionMode):
    """Sees calls of `embedding` with the measured tensors' matrices. sums: of those that the model
    has as they are."""

    def __init__(self, sums: Iterable[OtherSums]) -> None:
        super().__init__()
        self._sums: dict[int, list[OtherSums]] = {}
        for each in sums:
            if len(each.tensor.pieces) == 1:
                address = each.tensor.pieces[0].weight.data_ptr()
                self._sums.setdefault(address, []).append(each)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is not _FUNCTION and func is not _OPERATION:
            return output
        first, second = ("input", "weight") if func is _FUNCTION else ("weight", "indices")
        given = dict(zip((first, second), args, strict=False)) | kwargs
        rows, weight = given.get("input", given.get("indices")), given["weight"]
        found = self._sums.get(weight.data_ptr(), [])
        found = [each for each in found if each.tensor.pieces[0].weight.shape == weight.shape]
        if not found or not torch.is_grad_enabled():
            return output
        leaf = output.detach().requires_grad_()

        def came(gradient: torch.Tensor) -> None:
            for each in found:
                each.look_up(rows.flatten(), gradient.flatten(0, -2))

        leaf.register_hook(came)
        return leaf.clone()  # a leaf may not be written to, a copy may
