"""Every way in which a safetensors header can lie, and round trips against safetensors itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ders_core.errors import CheckpointError
from ders_core.files.header import MAX_HEADER_BYTES, read_header
from ders_core.files.spec import DTYPES, TensorSpec
from ders_core.files.writer import (
    encode_header,
    file_bytes,
    file_order,
    shards,
    tensor_bytes,
    write_file,
    write_tensors,
)

Forge = Callable[..., Path]


def entry(dtype: Any = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def sentence(path: Path) -> str:
    """The message with which `path` is refused; it must be one sentence that names the file."""
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
    assert "truncated inside its header" in sentence(forge({"a": entry()}, length=5000))


def test_truncated_data(forge: Forge) -> None:
    path = forge({"a": entry()}, b"\0" * 7)
    size = path.stat().st_size
    message = sentence(path)
    assert "truncated" in message
    assert f"{size + 1} bytes" in message
    assert str(size) in message


def test_huge_header_length_is_refused_before_it_is_read(forge: Forge) -> None:
    assert "not a safetensors file" in sentence(forge({}, length=MAX_HEADER_BYTES + 1))
    assert "not a safetensors file" in sentence(forge({}, length=2**64 - 1))


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
    message = sentence(forge({"the tensor": wrong}, b"\0" * 8))
    assert "'the tensor'" in message
    assert "malformed" in message


def test_unknown_dtype(forge: Forge) -> None:
    message = sentence(forge({"a": entry("F4")}, b"\0" * 8))
    assert "'F4'" in message
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
    with pytest.raises(CheckpointError, match="'a' cannot be read"):
        info.read()
    with pytest.raises(CheckpointError, match="ends inside tensor 'a'"):
        list(info.raw())


SAMPLE_DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
]
NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12
).filter(lambda name: name != "__metadata__")


@st.composite
def tensor_sets(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Named tensors of mixed dtypes, odd and empty shapes, with arbitrary bits."""
    found: dict[str, torch.Tensor] = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=6, unique=True)):
        dtype = draw(st.sampled_from(SAMPLE_DTYPES))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        count = int(torch.Size(shape).numel())
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        high = 2 if dtype is torch.bool else 256
        bits = torch.randint(
            high, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator
        )
        found[name] = bits.view(dtype).reshape(shape)
    return found


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equality of dtype, shape and every bit (NaNs included)."""
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and torch.equal(
            left.contiguous().reshape(-1).view(torch.uint8),
            right.contiguous().reshape(-1).view(torch.uint8),
        )
    )


FILES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FILES
@given(tensors=tensor_sets())
def test_what_we_write_safetensors_reads(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "ours.safetensors"
    sums = write_tensors(path, tensors)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys() == sums.keys()
    assert all(same_bits(loaded[name], tensors[name]) for name in tensors)
    specs = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    assert file_bytes(file_order(specs)) == path.stat().st_size
    assert list(tmp_path.glob("*.tmp")) == []


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
        assert infos[name].spec == TensorSpec(tensor.dtype, tuple(tensor.shape))
        if tensor.ndim:
            assert same_bits(infos[name].read(rows), tensor[rows])


def test_every_dtype_name_is_what_safetensors_calls_it(tmp_path: Path) -> None:
    for name, dtype in DTYPES.items():
        path = tmp_path / f"{name}.safetensors"
        write_tensors(path, {"a": torch.zeros(8, dtype=torch.uint8).view(dtype)})
        with safe_open(path, "pt") as file:
            piece = file.get_slice("a")
            assert piece.get_dtype() == name
            assert file.get_tensor("a").dtype == dtype


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
        header = encode_header({"x" * length: TensorSpec(torch.uint8, (1,))})
        assert len(header) % 8 == 0
        json.loads(header[8:])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    limit=st.integers(1, 60),
)
def test_shards_keep_every_tensor_and_the_limit(sizes: list[int], limit: int) -> None:
    specs = {f"t{i:02d}": TensorSpec(torch.uint8, (size,)) for i, size in enumerate(sizes)}
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
    with pytest.raises(AssertionError, match="promised"):
        write_file(path, {"a": TensorSpec(torch.uint8, (4,))}, lambda name: [b"abc"])
    assert not path.exists()
