"""Every way in which a safetensors header can lie, and round trips against safetensors itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.any_tensors import FILES, same_bits, tensor_sets
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.files.header import MAX_HEADER_BYTES, read_header
from ders_core.files.spec import TensorSpec

Forge = Callable[..., Path]


def entry(dtype: Any = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def sentence(path: Path) -> str:
    """The message with which `path` is refused; it must be one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def test_an_honest_file_is_read(forge: Forge) -> None:
    path = forge({"__metadata__": {"format": "pt"}, "a": entry()}, b"\0" * 8)
    tensors, metadata = read_header(path)
    assert metadata == {"format": "pt"}
    assert tensors["a"].shape == (2,)
    assert tensors["a"].nbytes == 8
    assert tensors["a"].read().tolist() == [0.0, 0.0]


def test_truncated_prefix(tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(b"\x10\0\0")
    assert "3 bytes" in sentence(path)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.safetensors"
    path.touch()
    assert "0 bytes" in sentence(path)


def test_truncated_header(forge: Forge) -> None:
    message = sentence(forge({"a": entry()}, length=5000))
    assert "truncated" in message
    assert "header" in message


def test_truncated_data(forge: Forge) -> None:
    path = forge({"a": entry()}, b"\0" * 7)
    size = path.stat().st_size
    message = sentence(path)
    assert "truncated" in message
    assert f"{size + 1} bytes" in message
    assert str(size) in message


def test_huge_header_length_is_refused_before_it_is_read(forge: Forge) -> None:
    for length in (MAX_HEADER_BYTES + 1, 2**64 - 1):
        assert f"{length} bytes" in sentence(forge({}, length=length))


@pytest.mark.parametrize(
    "text",
    [b"{not json}", b"", b"\xff\xfe\xfd{}", b'{"a": ', b"[" * 100_000, b'{"a":' * 50_000],
    ids=["word", "empty", "not-utf8", "cut", "deep-list", "deep-object"],
)
def test_header_that_is_not_json(forge: Forge, text: bytes) -> None:
    assert "not JSON" in sentence(forge(text))


@pytest.mark.parametrize("header", [[], 3, "text", None])
def test_header_that_is_no_object(forge: Forge, header: Any) -> None:
    assert "not a JSON object" in sentence(forge(header))


def test_metadata_that_is_no_object(forge: Forge) -> None:
    assert "__metadata__" in sentence(forge({"__metadata__": [1]}))


@pytest.mark.parametrize(
    "wrong",
    [
        entry(begin=-8, end=0),
        entry(shape=[-2], end=-8),
        entry(shape=[-1, -2]),
        entry(shape=[2.0]),
        entry(shape=[True, 2]),
        entry(shape=None),
        entry(shape=""),
        entry(shape={}),
        entry(begin=0.0),
        entry(end="8"),
        entry(shape=[10**4000, 10**4000]),
        entry(shape=[2**70], end=2**72),
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "data_offsets": [0, 8]},
        {"shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": 8},
        {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]},
        {"dtype": {}, "shape": [2], "data_offsets": [0, 8]},
        "text",
        None,
        [0, 8],
    ],
    ids=lambda wrong: repr(wrong)[:70],
)
def test_malformed_entry_names_the_tensor(forge: Forge, wrong: Any) -> None:
    """Alone, and among others that are alike and whole."""
    whole = {"a": entry(), "b": entry(shape=[1, 2])}
    for others in ({}, whole):
        message = sentence(forge({**others, "the tensor": wrong}, b"\0" * 8))
        assert "'the tensor'" in message
        assert "malformed" in message


def test_unknown_dtype(forge: Forge) -> None:
    message = sentence(forge({"a": entry("F3")}, b"\0" * 8))
    assert "'F3'" in message
    assert "BF16" in message


@pytest.mark.parametrize(("dtype", "end"), [("F32", 4), ("F64", 8), ("BF16", 8), ("F32", 12)])
def test_size_that_disagrees_with_dtype_and_shape(forge: Forge, dtype: str, end: int) -> None:
    message = sentence(forge({"a": entry(dtype, [2], 0, end)}, b"\0" * end))
    assert f"{end} bytes" in message


def test_end_before_begin(forge: Forge) -> None:
    assert "'a'" in sentence(forge({"a": entry(begin=8, end=0)}, b"\0" * 8))


@pytest.mark.parametrize("begin", [0, 4])
def test_overlap(forge: Forge, begin: int) -> None:
    header = {"a": entry(end=8), "b": entry(begin=begin, end=begin + 8)}
    assert "overlaps" in sentence(forge(header, b"\0" * (begin + 8)))


@pytest.mark.parametrize("first", [0, 8])
def test_hole(forge: Forge, first: int) -> None:
    header = {"a": entry(begin=first, end=first + 8), "b": entry(begin=20, end=28)}
    assert "hole" in sentence(forge(header, b"\0" * 28))


def test_trailing_bytes(forge: Forge) -> None:
    assert "3 bytes" in sentence(forge({"a": entry()}, b"\0" * 11))


def test_trailing_bytes_of_an_empty_file(forge: Forge) -> None:
    assert "1 bytes" in sentence(forge({}, b"\0"))


def test_a_file_that_shrinks_while_it_is_open(forge: Forge) -> None:
    path = forge({"a": entry()}, b"\0" * 8)
    info = read_header(path)[0]["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with raises_saying(CheckpointError, path.name, "'a'", "changed while"):
        info.read()
    with raises_saying(CheckpointError, path.name, "inside", "'a'"):
        list(info.raw())


@FILES
@given(tensors=tensor_sets(), bounds=st.tuples(st.integers(-6, 6), st.integers(-6, 6)))
def test_what_safetensors_writes_we_read(
    tmp_path: Path, tensors: dict[str, torch.Tensor], bounds: tuple[int, int]
) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file(tensors, path, {"format": "pt", "ключ": "значение"})
    infos, metadata = read_header(path)
    assert metadata == {"format": "pt", "ключ": "значение"}
    assert infos.keys() == tensors.keys()
    rows = slice(*bounds)
    for name, tensor in tensors.items():
        assert same_bits(infos[name].read(), tensor)
        raw = b"".join(infos[name].raw())
        assert raw == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert infos[name].spec == TensorSpec.like(tensor)
        if tensor.ndim:
            assert same_bits(infos[name].read(rows), tensor[rows])
