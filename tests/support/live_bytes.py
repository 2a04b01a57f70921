"""How many bytes of tensors and arrays are alive at most while something runs, each one counted."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from typing import Any
from weakref import finalize

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within it: `most` bytes of what torch's operations gave, as long as that was alive, and of
    what Python and numpy allocated."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: Counter[int] = Counter()
        self._bytes, self.most = 0, 0

    def __enter__(self) -> Any:
        tracemalloc.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        tracemalloc.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {_place(tensor) for tensor in _on_cpu((args, kwargs))}
        for tensor in _on_cpu(result):
            if self._tensors[_place(tensor)] or _place(tensor) not in known:  # else of an array
                self._took(tensor)
        self.most = max(self.most, self._bytes + tracemalloc.get_traced_memory()[0])
        return result

    def _took(self, tensor: torch.Tensor) -> None:
        place, size = _place(tensor), tensor.untyped_storage().nbytes()
        if not self._tensors[place]:
            self._bytes += size
        self._tensors[place] += 1
        finalize(tensor, self._gone, place, size)

    def _gone(self, place: int, size: int) -> None:
        self._tensors[place] -= 1
        if not self._tensors[place]:
            self._bytes -= size


def _on_cpu(values: Any) -> list[torch.Tensor]:
    tensors = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
    return [tensor for tensor in tensors if tensor.device.type == "cpu"]


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
