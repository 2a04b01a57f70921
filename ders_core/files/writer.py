"""Safetensors and JSON files, each written complete or not at all; tensors in a stream, hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ders_core.files.aside import written_aside
from ders_core.files.past_cache import written_from
from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import CHUNK_BYTES
from ders_core.later import torch

if TYPE_CHECKING:
    from hashlib import _Hash

MAX_SHARD_BYTES = 4_000_000_000

METADATA = {"format": "pt"}
"""transformers expects it in the header of every safetensors file."""

HASHED_APART_BYTES = 1 << 16
"""To hand over less to another thread takes longer than to hash it."""

NO_METADATA: Mapping[str, str] = {}

Specs = Mapping[str, TensorSpec]


def encode_header(
    specs: Specs, metadata: Mapping[str, str] | None = NO_METADATA, nbytes: int = 0
) -> bytes:
    """Length prefix and header of a safetensors file that holds `specs` in this order, end to end.

    metadata: None is written as null, as some writers do. nbytes: at least so many, a multiple of
    8; what the header does not need are spaces. If wide dtypes come first (see `file_order`), every
    tensor is aligned for memory mapping.
    """
    entries: dict[str, Any] = {}
    if metadata is None or metadata:
        entries["__metadata__"] = None if metadata is None else dict(metadata)
    position = 0
    for name, spec in specs.items():
        end = position + spec.nbytes
        dtype, shape = spec.stored
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * max(-len(text) % 8, nbytes - 8 - len(text))
    return len(text).to_bytes(8, "little") + text


def file_order(specs: Specs) -> dict[str, TensorSpec]:
    """Specs sorted as safetensors sorts them: wide dtypes first, then by name."""
    return dict(sorted(specs.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))


def file_bytes(specs: Specs, metadata: Mapping[str, str] | None = NO_METADATA) -> int:
    """Exact size on disk of a safetensors file that will hold `specs`."""
    return len(encode_header(specs, metadata)) + sum(spec.nbytes for spec in specs.values())


def shards(specs: Specs, max_bytes: int = MAX_SHARD_BYTES) -> dict[str, dict[str, TensorSpec]]:
    """File name -> its tensors. Files are filled in order, each up to `max_bytes` unless a single
    tensor is larger.

    See `numbered` for the names.
    """
    return numbered(filled(specs, max_bytes))


def filled(specs: Specs, max_bytes: int = MAX_SHARD_BYTES) -> list[dict[str, TensorSpec]]:
    """The tensors of each of the files that `shards` makes."""
    parts: list[dict[str, TensorSpec]] = [{}]
    used = 0
    for name, spec in specs.items():
        if parts[-1] and used + spec.nbytes > max_bytes:
            parts.append({})
            used = 0
        parts[-1][name] = spec
        used += spec.nbytes
    return parts


def numbered(parts: Sequence[Specs]) -> dict[str, dict[str, TensorSpec]]:
    """File name -> its tensors, in the order of `file_order`. See `file_names`."""
    return dict(zip(file_names(len(parts)), map(file_order, parts), strict=True))


def file_names(count: int) -> list[str]:
    """The names of so many weight files: model.safetensors is one alone; several are numbered as
    transformers numbers them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def tensor_bytes(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a CPU tensor in chunks; a contiguous tensor is not copied."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    for begin in range(0, flat.size, CHUNK_BYTES):
        yield memoryview(flat[begin : begin + CHUNK_BYTES])  # type: ignore[arg-type]


def write_file(
    path: Path,
    specs: Specs,
    read: Callable[[str], Iterable[bytes | memoryview]],
    metadata: Mapping[str, str] | None = NO_METADATA,
    *,
    header_bytes: int = 0,
    sync: bool = True,
    past_cache: bool = True,
    hashed: Container[str] | None = None,
) -> dict[str, str]:
    """Write one safetensors file, tensor by tensor in the order of `specs`.

    read: yields the bytes of the tensor of that name. metadata: as of `encode_header`.
    header_bytes: `nbytes` there. sync: as in `written_aside`. past_cache: as in `written_from`; not
    for what is read again soon. Returns the hex SHA-256 of each tensor's bytes, or of those that
    are named in `hashed`. Raises OSError.
    """
    checksums: dict[str, str] = {}
    header = encode_header(specs, metadata, header_bytes)
    size = len(header) + sum(spec.nbytes for spec in specs.values())
    with ExitStack() as stack:
        aside = stack.enter_context(written_aside(path, sync=sync))
        open(aside, "wb").close()
        pool = stack.enter_context(ThreadPoolExecutor(1, "checksum"))
        file = stack.enter_context(written_from(aside, 0, size, past_cache=past_cache))
        file.write(header)
        for name, spec in specs.items():
            digest, count = hashlib.sha256(), 0
            is_hashed = hashed is None or name in hashed
            for chunk in _hashed(read(name), digest, pool) if is_hashed else read(name):
                count += file.write(chunk)
                del chunk  # whose memory it is may need it for the next one
            if count != spec.nbytes:
                raise AssertionError(f"{name}: {count} bytes written, {spec.nbytes} promised")
            if is_hashed:
                checksums[name] = digest.hexdigest()
    return checksums


def _hashed(
    chunks: Iterable[bytes | memoryview], digest: _Hash, pool: Executor
) -> Iterator[bytes | memoryview]:
    """The same chunks, each of which another thread adds to a digest while the caller uses it."""
    for chunk in chunks:
        if len(chunk) < HASHED_APART_BYTES:
            digest.update(chunk)
            yield chunk
            del chunk
            continue
        added = pool.submit(digest.update, chunk)
        try:
            yield chunk
        finally:
            added.result()
            del chunk


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Write tensors in memory to one safetensors file; returns their checksums (`write_file`)."""
    specs = file_order({name: TensorSpec.like(tensor) for name, tensor in tensors.items()})
    return write_file(path, specs, lambda name: tensor_bytes(tensors[name].cpu()))


def json_text(value: Any) -> str:
    """JSON as every file of this package has it. Keys keep their order."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file without changing line ends (see `written_aside`)."""
    with written_aside(path) as aside, open(aside, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_text` does; equal values give equal bytes."""
    write_text(path, json_text(value))


def write_index(
    path: Path, files: Mapping[str, Specs], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write the index that transformers expects for several shards (see `index_name`).

    metadata: entries of the index besides the size.
    """
    total = sum(spec.nbytes for specs in files.values() for spec in specs.values())
    weight_map = {name: file for file, specs in files.items() for name in specs}
    index = {
        "metadata": {**(metadata or {}), "total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
    write_json(path, index)
