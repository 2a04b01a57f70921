"""Files whose tensors are written one by one, in any order: what safetensors itself writes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ders_core.files.dtype import Dtype
from ders_core.files.in_place import laid_out, reserve, write_at
from ders_core.files.spec import TensorSpec
from ders_core.files.writer import METADATA, file_order, tensor_bytes, write_tensors

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.arange(5, dtype=torch.uint8),
    "c": torch.zeros(0, 3, dtype=torch.bfloat16),
    "d": torch.tensor(2.5, dtype=torch.bfloat16),
}
SPECS = file_order(
    {name: TensorSpec(Dtype.of(t.dtype), tuple(t.shape)) for name, t in TENSORS.items()}
)


def test_any_order_gives_the_file_that_is_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert not reserve(path, SPECS)
    places = laid_out(path, SPECS)
    for name in ("b", "d", "a", "c"):
        raw = b"".join(tensor_bytes(TENSORS[name]))
        chunks = [raw[begin : begin + 7] for begin in range(0, len(raw), 7)]
        assert write_at(places[name], chunks) == hashlib.sha256(raw).hexdigest()
    write_tensors(tmp_path / "b.safetensors", TENSORS)
    assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert torch.equal(load_file(path)["a"], TENSORS["a"])
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["a.safetensors", "b.safetensors"]


def test_a_reserved_file_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    reserve(path, SPECS, METADATA)
    write_at(laid_out(path, SPECS, METADATA)["a"], tensor_bytes(TENSORS["a"]))
    before = path.read_bytes()
    assert reserve(path, SPECS, METADATA)
    assert path.read_bytes() == before
    for damage in (before[:-1], before.replace(b'"pt"', b'"tp"'), b""):
        path.write_bytes(damage)
        assert not reserve(path, SPECS, METADATA)
        assert len(path.read_bytes()) == len(before)
        assert reserve(path, SPECS, METADATA)


@pytest.mark.parametrize("count", [4, 6])
def test_a_tensor_of_another_length_is_a_fault(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.safetensors"
    reserve(path, SPECS)
    with pytest.raises(AssertionError, match="b: "):
        write_at(laid_out(path, SPECS)["b"], [bytes(count)])
