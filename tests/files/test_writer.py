"""Written files: read back by safetensors itself, and complete or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.any_tensors import FILES, same_bits, tensor_sets
from support.messages import raises_saying

from ders_core.files.dtype import Dtype
from ders_core.files.header import read_header
from ders_core.files.model_files import INDEX, index_name
from ders_core.files.spec import TensorSpec
from ders_core.files.store import TensorStore
from ders_core.files.writer import (
    HASHED_APART_BYTES,
    encode_header,
    file_bytes,
    file_order,
    shards,
    tensor_bytes,
    write_file,
    write_index,
    write_tensors,
    write_text,
)


@FILES
@given(tensors=tensor_sets())
def test_what_we_write_safetensors_reads(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "ours.safetensors"
    sums = write_tensors(path, tensors)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys() == sums.keys()
    assert all(same_bits(loaded[name], tensors[name]) for name in tensors)
    specs = {name: TensorSpec.like(value) for name, value in tensors.items()}
    assert file_bytes(file_order(specs)) == path.stat().st_size
    assert list(tmp_path.glob("*.tmp")) == []


def test_every_dtype_name_is_what_safetensors_calls_it(tmp_path: Path) -> None:
    for dtype in Dtype:
        path = tmp_path / f"{dtype.name}.safetensors"
        write_tensors(path, {"a": torch.zeros(8, dtype=torch.uint8).view(dtype.torch)})
        with safe_open(path, "pt") as file:
            piece = file.get_slice("a")
            assert piece.get_dtype() == dtype.name
            tensor = file.get_tensor("a")
        assert Dtype.of(tensor.dtype) is dtype
        assert (dtype.itemsize, dtype.is_float) == (
            tensor.dtype.itemsize,
            tensor.dtype.is_floating_point,
        )


def test_the_header_is_that_of_safetensors(tmp_path: Path) -> None:
    """Same tensors, same order, same bytes: a kept checkpoint can come back bit for bit."""
    tensors = {
        "b": torch.ones(3, dtype=torch.bfloat16),
        "a": torch.ones(2, 2),
        "é": torch.zeros(1, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    specs = {
        name: info.spec
        for name, info in sorted(
            read_header(tmp_path / "theirs")[0].items(), key=lambda item: item[1].begin
        )
    }
    write_file(tmp_path / "ours", specs, lambda name: tensor_bytes(tensors[name]), {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_header_is_padded_to_eight_bytes() -> None:
    for length in range(1, 20):
        header = encode_header({"x" * length: TensorSpec(Dtype.U8, (1,))})
        assert len(header) % 8 == 0
        json.loads(header[8:])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    limit=st.integers(1, 60),
)
def test_shards_keep_every_tensor_and_the_limit(sizes: list[int], limit: int) -> None:
    specs = {f"t{i:02d}": TensorSpec(Dtype.U8, (size,)) for i, size in enumerate(sizes)}
    files = shards(specs, limit)
    names = [sorted(part) for part in files.values()]
    assert [name for part in names for name in part] == list(specs)
    for part in files.values():
        assert sum(spec.nbytes for spec in part.values()) <= limit or len(part) == 1
    if len(files) == 1:
        assert list(files) == ["model.safetensors"]
    else:
        assert list(files) == [
            f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
        ]
        for left, right in pairwise(names):  # greedy: no file is left half full
            filled = sum(specs[name].nbytes for name in left)
            assert filled + specs[right[0]].nbytes > limit


def test_a_reader_that_yields_too_little_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with raises_saying(AssertionError, "promised"):
        write_file(path, {"a": TensorSpec(Dtype.U8, (4,))}, lambda name: [b"abc"])
    assert not path.exists()


@pytest.mark.parametrize("sizes", [(10, 3), (10, HASHED_APART_BYTES), (HASHED_APART_BYTES, 3)])
def test_a_piece_is_free_when_the_next_is_asked_for(tmp_path: Path, sizes: tuple[int, int]) -> None:
    """Whether another thread hashes it or not: its memory may be what the next one needs."""
    pieces = [np.zeros(size, np.uint8) for size in sizes]
    gone = [weakref.ref(piece) for piece in pieces]

    def read(name: str) -> Iterator[memoryview]:
        for seen in gone:
            yield memoryview(pieces.pop(0))  # type: ignore[arg-type]
            assert seen() is None

    spec = TensorSpec(Dtype.U8, (sum(sizes),))
    sums = write_file(tmp_path / "a", {"a": spec}, read)
    assert sums == {"a": hashlib.sha256(bytes(sum(sizes))).hexdigest()}
    assert not pieces


def test_an_interrupted_write_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(2)})
    before = path.read_bytes()

    def interrupted(name: str) -> Iterator[bytes]:
        yield b"abcd"
        assert path.read_bytes() == before  # readers see the old file until the new one is complete
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(path, {"a": TensorSpec(Dtype.U8, (8,))}, interrupted)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ["", "a\r\nb\n", "ключ — é", "\x00"])
def test_text_is_written_as_it_is(tmp_path: Path, text: str) -> None:
    write_text(tmp_path / "a", text)
    assert (tmp_path / "a").read_bytes() == text.encode()
    write_text(tmp_path / "a", "shorter")
    assert (tmp_path / "a").read_bytes() == b"shorter"


@pytest.mark.parametrize("sync", [True, False])
def test_synced_before_it_appears(
    tmp_path: Path, sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    synced: list[bool] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        synced.append(path.exists())
        fsync(handle)

    monkeypatch.setattr("ders_core.files.aside.os.fsync", watched)
    specs = {"a": TensorSpec(Dtype.U8, (3,))}
    write_file(path, specs, lambda name: [b"abc"], sync=sync)
    assert synced == ([False] if sync else [])
    assert same_bits(load_file(path)["a"], torch.tensor(list(b"abc"), dtype=torch.uint8))


def test_the_index_is_what_transformers_writes(tmp_path: Path, models: dict[str, Any]) -> None:
    """Against transformers' own sharded checkpoint of the same tensors."""
    models["mixtral"].save_pretrained(tmp_path / "theirs", max_shard_size="200KB")
    wanted = json.loads((tmp_path / "theirs" / INDEX).read_text())
    store = TensorStore.open(tmp_path / "theirs")
    files = {
        file: {name: store.tensors[name].spec for name in names}
        for file, names in store.files.items()
    }
    assert len(files) > 2
    (tmp_path / "ours").mkdir()
    parameters = {key: wanted["metadata"][key] for key in wanted["metadata"] if key != "total_size"}
    write_index(tmp_path / "ours" / INDEX, files, parameters)
    assert json.loads((tmp_path / "ours" / INDEX).read_text()) == wanted


def test_one_file_has_no_index() -> None:
    assert index_name({}, ["model.safetensors"]) is None
    assert index_name({}, ["model-00001-of-00001.safetensors"]) == INDEX
    assert index_name({"transformers_weights": "a.safetensors"}, ["a.safetensors"]) is None
    named = "a.safetensors.index.json"
    assert index_name({"transformers_weights": named}, ["b.safetensors"]) == named
