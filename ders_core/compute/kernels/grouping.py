"""Places sorted by a small number at each of them."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop


@loop
def stable_order(classes: np.ndarray, begins: np.ndarray, order: np.ndarray) -> None:
    """What a stable argsort gives. classes: uint8 `[n]`. begins: int64, where each class begins in
    the order; is changed. order: int64 `[n]`, gets the places."""
    for place in range(classes.size):
        number = classes[place]
        order[begins[number]] = place
        begins[number] += 1
