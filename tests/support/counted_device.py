"""A device that exists only in tests, and what a program waits for on it.

Its tensors say that they are on `meta`, and each holds a tensor of the CPU, on which every
operation is done: so what is computed is right, and takes the ways of what is not on the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ders_core.checkpoint.piece_buffers import PieceBuffer

DEVICE = torch.device("meta")
SCALARS = ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal")
SIZED = ("aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_consecutive")


class Far(torch.Tensor):
    """A tensor of that device."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        far: Far = torch.Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=DEVICE,
        )
        far.near = near
        return far

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own stub lacks cls and func
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} outside of `counted_waits`")


class _Waits(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, names = func._schema.name, [each.name for each in func._schema.arguments]
        arguments = dict(zip(names, args, strict=False)) | (kwargs or {})
        far = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Far)]
        place = arguments.get("device")
        stays = bool(far) if place is None else torch.device(place) == DEVICE
        if name == "aten::copy_":
            stays = isinstance(args[0], Far)
        if far and (not stays or name in SCALARS + SIZED or _masks(name, arguments)):
            self.counted[name] += 1
        near = tree_map_only(Far, lambda each: each.near, arguments)
        if place is not None:
            near["device"] = torch.device("cpu")
        ordered = [
            near.pop(each.name)
            for each in func._schema.arguments
            if not each.kwarg_only and each.name in near
        ]
        result = func(*ordered, **near)
        if name in SCALARS or not stays:
            return result
        known = {id(each.near): each for each in far}  # what is changed in place

        def far_of(near: torch.Tensor) -> Far:
            return known[id(near)] if id(near) in known else Far(near)

        return tree_map_only(torch.Tensor, far_of, result)


def _masks(name: str, arguments: dict[str, Any]) -> bool:
    indices = arguments.get("indices") if "index" in name else None
    return isinstance(indices, (list, tuple)) and any(
        each is not None and each.dtype == torch.bool for each in indices
    )


class _Made(TorchFunctionMode):
    """`torch.tensor` makes what is on a device without the operations that a mode sees."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") is not None:
            return func(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        return func(*args, **kwargs)


@contextmanager
def counted_waits() -> Iterator[Counter[str]]:
    """Count the operations within the block, in this thread, for which a program would wait until
    the device has done all that it was given: those that bring values or sizes from there. What is
    read from files goes to the device."""
    mode, take = _Waits(), PieceBuffer.take
    with pytest.MonkeyPatch.context() as patch, _Made(), mode:
        patch.setattr(PieceBuffer, "take", lambda buffer: take(buffer).to(DEVICE))
        yield mode.counted
