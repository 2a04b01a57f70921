"""How many bytes of tensors and arrays are alive at most while something runs, each one counted."""

from __future__ import annotations

import mmap
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import finalize

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ders_core.compute import buffers


class LiveBytes(TorchDispatchMode):
    """Within it: `most` bytes of what torch's operations gave, as long as that was alive, of what
    Python and numpy allocated, and of what `compute.buffers` takes from the system, which keeps
    nothing for reuse meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: Counter[int] = Counter()
        self._bytes, self.most = 0, 0
        self._ends = ExitStack()

    def __enter__(self) -> Any:
        tracemalloc.start()
        self._ends.callback(tracemalloc.stop)
        patch = self._ends.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(buffers, "_free", [])
        patch.setattr(buffers, "KEPT_BYTES", 0)
        patch.setattr(buffers, "_mapped", self._counted(buffers._mapped))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._ends.close()

    def _counted(self, mapped: Callable[[int], mmap.mmap]) -> Callable[[int], mmap.mmap]:
        def take(size: int) -> mmap.mmap:
            memory = mapped(size)
            self._grew(size)
            finalize(memory, self._grew, -size)
            return memory

        return take

    def _grew(self, size: int) -> None:
        self._bytes += size
        self.most = max(self.most, self._bytes + tracemalloc.get_traced_memory()[0])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {_place(tensor) for tensor in _on_cpu((args, kwargs))}
        for tensor in _on_cpu(result):
            if self._tensors[_place(tensor)] or _place(tensor) not in known:  # else of an array
                self._took(tensor)
        self._grew(0)
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
