"""Files whose tensors are written one by one, in any order: what safetensors itself writes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ders_core.files.dtype import Dtype
from ders_core.files.header import read_header
from ders_core.files.in_place import finish, laid_out, reserve, write_at
from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import FileTensor
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
    for damage in (before[:-1], bytes(8) + before[8:], b""):
        path.write_bytes(damage)
        assert not reserve(path, SPECS, METADATA)
        assert len(path.read_bytes()) == len(before)
        assert reserve(path, SPECS, METADATA)


def test_what_is_finished_has_its_header_and_length(tmp_path: Path) -> None:
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    reserve(path, SPECS)
    for name, place in laid_out(path, SPECS).items():
        write_at(place, tensor_bytes(TENSORS[name]))
    write_tensors(other, TENSORS)
    whole = other.read_bytes()
    path.write_bytes(whole[:8] + whole[8:].replace(b'"F32"', b'"F64"') + b"more")
    finish(path, SPECS)
    assert path.read_bytes() == whole


def test_tensors_are_appended_where_the_header_has_room(tmp_path: Path) -> None:
    path, more = tmp_path / "a.safetensors", torch.arange(11, dtype=torch.uint8)
    reserve(path, SPECS, METADATA, 1000)
    places = laid_out(path, SPECS, METADATA, 1000)
    end = max(place.end for place in places.values())
    specs = {**SPECS, "more": TensorSpec(Dtype.U8, (11,))}
    places["more"] = FileTensor("more", specs["more"], path, end, end + 11)
    for name, tensor in {**TENSORS, "more": more}.items():
        write_at(places[name], tensor_bytes(tensor))
    assert reserve(path, SPECS, METADATA, 1000)
    finish(path, specs, METADATA, 1000)
    assert path.read_bytes()[:8] == (1000 - 8).to_bytes(8, "little")
    loaded = load_file(path)
    assert sorted(loaded) == [*"abcd", "more"]
    for name, tensor in {**TENSORS, "more": more}.items():
        assert torch.equal(loaded[name], tensor)
    assert read_header(path)[0] == {name: places[name] for name in loaded}


def test_a_header_without_room_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    reserve(path, SPECS, METADATA, 1000)
    before = path.read_bytes()
    more = {f"long name {number}": TensorSpec(Dtype.U8, (1,)) for number in range(50)}
    with pytest.raises(AssertionError, match="room for 1000"):
        finish(path, {**SPECS, **more}, METADATA, 1000)
    assert path.read_bytes() == before


@pytest.mark.parametrize("count", [4, 6])
def test_a_tensor_of_another_length_is_a_fault(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.safetensors"
    reserve(path, SPECS)
    with pytest.raises(AssertionError, match="b: "):
        write_at(laid_out(path, SPECS)["b"], [bytes(count)])
