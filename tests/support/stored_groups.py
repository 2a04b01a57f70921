"""A group of experts that lies in one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ders_core.checkpoint.axes import EXPERT, IN, OUT, Axes
from ders_core.checkpoint.groups import Block, ExpertGroup
from ders_core.checkpoint.matrix import Matrix, Slot
from ders_core.files.header import read_header

BLOCK = Block("model.layers.0.moe", 0, 0, 0, None)


def group_of(path: Path, weights: np.ndarray, axes: str = "expert out in") -> ExpertGroup:
    """`[K, out, in]` saved in one tensor with that order of axes, as a group."""
    count, out, width = weights.shape
    order = {EXPERT: 0, OUT: 1, IN: 2}
    parsed = Axes.parse(axes)
    laid = weights.transpose([order[axis] for axis in parsed.order])
    save_file({"x": np.ascontiguousarray(laid)}, path)
    tensor = read_header(path)[0]["x"]
    sizes = {EXPERT: count, OUT: out, IN: width}
    slots = [Slot(parsed, sizes, expert) for expert in range(count)]
    return ExpertGroup(BLOCK, "up", tuple(Matrix(tensor, slot) for slot in slots))
