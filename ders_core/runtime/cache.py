"""Weights that were synthesized last, within so many bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch


class WeightCache:
    """Keeps what was used last. most: bytes; a weight that is larger than that is not kept."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.nbytes = 0
        self._kept: OrderedDict[Hashable, torch.Tensor] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """A copy begins empty: keys name what is in this process, and not what is copied."""
        return {"most": self.most, "nbytes": 0, "_kept": OrderedDict()}

    def clear(self) -> None:
        """Keep nothing of what was used."""
        self._kept.clear()
        self.nbytes = 0

    def get(self, key: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The weight of this key, made if it is not kept. It can be used where gradients are
        taken, also if it was made where none are: torch refuses tensors of inference mode there."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        with torch.inference_mode(False):
            made = make()
        if made.nbytes <= self.most:
            self._kept[key] = made
            self.nbytes += made.nbytes
            while self.nbytes > self.most:
                _, oldest = self._kept.popitem(last=False)
                self.nbytes -= oldest.nbytes
        return made
