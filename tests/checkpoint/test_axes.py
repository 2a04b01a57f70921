"""Patterns of axes, and the matrices at slots of tensors, against numpy."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.messages import raises_saying

from ders_core.checkpoint.axes import Axes
from ders_core.checkpoint.matrix import Matrix, Slot
from ders_core.files.header import read_header


@given(
    order=st.permutations(["expert", "part", "out", "in"]),
    cuts=st.lists(st.booleans(), min_size=3, max_size=3),
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    data=st.data(),
)
def test_a_slot_is_where_numpy_puts_the_matrix(
    order: list[str], cuts: list[bool], sizes: tuple[int, ...], data: st.DataObject
) -> None:
    size = dict(zip(("expert", "part", "out", "in"), sizes, strict=True))
    pattern = order[0]
    for axis, cut in zip(order[1:], cuts, strict=True):
        pattern += f" {axis}" if cut else f"+{axis}"
    pattern = " ".join(
        f"({word.replace('+', ' ')})" if "+" in word else word for word in pattern.split()
    )
    if any({"out", "in"} <= set(part.split()) for part in re.findall(r"\(([a-z ]+)\)", pattern)):
        with raises_saying(ValueError, "'out'", "'in'"):
            Axes.parse(pattern)
        return
    axes = Axes.parse(pattern)
    assert str(axes) == pattern
    plain = np.arange(np.prod(sizes)).reshape([size[axis] for axis in order])
    disk = plain.reshape(axes.shape(size))
    assert axes.sizes(disk.shape, {"part": size["part"], "expert": size["expert"]}) == size
    expert = data.draw(st.integers(0, size["expert"] - 1))
    part = data.draw(st.integers(0, size["part"] - 1))
    wanted = plain.transpose([order.index(a) for a in ("expert", "part", "out", "in")])
    slot = Slot(axes, size, expert, part)
    got = slot.view(torch.from_numpy(disk.copy()).flatten())
    assert np.array_equal(got.numpy(), wanted[expert, part])


@pytest.mark.parametrize("pattern", ["", "in", "out out in", "out on", "out (in", "expert part in"])
def test_axes_that_are_none(pattern: str) -> None:
    with raises_saying(ValueError, "axes", repr(pattern)):
        Axes.parse(pattern)


@pytest.mark.parametrize("pattern", ["in out", "out in", "expert (out part) in", "(expert in) out"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_a_matrix_reads_any_rows(tmp_path: Path, pattern: str, dtype: torch.dtype) -> None:
    axes = Axes.parse(pattern)
    size = {"expert": 3, "part": 2, "out": 5, "in": 7}
    size = {axis: size[axis] for axis in axes.order}
    shape = axes.shape(size)
    torch.manual_seed(0)
    tensor = torch.randint(0, 200, shape).to(dtype)
    save_file({"before": torch.ones(3), "x": tensor}, tmp_path / "a.safetensors")
    info = read_header(tmp_path / "a.safetensors")[0]["x"]
    slot = Slot(axes, size, size.get("expert", 1) - 1, size.get("part", 1) - 1)
    wanted = slot.view(tensor.flatten())
    for rows in (None, slice(0, 2), slice(3, None), slice(4, 9), slice(2, 2)):
        assert torch.equal(Matrix(info, slot).read(rows), wanted[rows or slice(None)])
