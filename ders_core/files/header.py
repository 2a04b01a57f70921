"""The header of one safetensors file, read and checked.

A header is untrusted: every error in it has a separate message.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ders_core.errors import CheckpointError
from ders_core.files.address import file_size, is_remote, read_range
from ders_core.files.dtype import Dtype
from ders_core.files.spec import NARROW_BITS, TensorSpec
from ders_core.files.stand_ins import START_BYTES, stand_in
from ders_core.files.tensor import FileTensor
from ders_core.files.untrusted_json import JsonFault, parse_json

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""

LARGEST_NUMBER = 1 << 63
"""Above every dimension and file position."""

MOST_DIGITS = 4300
"""Of a number, as Python reads at most; one that is too large for its place is told by its name."""

ONCE = ("__metadata__", "dtype", "shape", "data_offsets")
"""What the safetensors library refuses where it is there twice."""

GUESSED_BYTES = 32 << 10
"""Read from a remote file before its header's length is known: one round trip for most files."""


def read_header(
    path: Path, size: int | None = None
) -> tuple[dict[str, FileTensor], dict[str, str] | None]:
    """The tensors of one safetensors file, and its free-form metadata: empty if the header has
    none, None if it says null.

    Reads the header only. size: of the file in bytes, if it is known. Raises CheckpointError if the
    file is truncated, is not a safetensors file, or its header contradicts itself or the file's
    size.
    """
    size = file_size(path) if size is None else size
    start = read_range(path, 0, min(size, GUESSED_BYTES if is_remote(path) else 8))
    if len(start) < 8:
        raise CheckpointError(f"{path.name} is {size} bytes long, too short for safetensors")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES or (not length and size > 8):
        instead = stand_in(read_range(path, 0, min(size, START_BYTES)))
        raise CheckpointError(
            f"{path.name} {instead}"
            if instead
            else f"{path.name} is not a safetensors file: its header would be {length} bytes long"
        )
    end = min(8 + length, size)
    text = start[8:end] + (read_range(path, len(start), end) if end > len(start) else b"")
    if len(text) < length:
        raise CheckpointError(f"{path.name} is truncated inside its header; copy the file again")
    try:
        entries = parse_json(text, once=ONCE, finite=True, most_digits=MOST_DIGITS)
    except JsonFault as error:
        raise CheckpointError(f"{path.name}: the header is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path.name}: the header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if metadata is not None and not isinstance(metadata, dict):
        raise CheckpointError(f"{path.name}: the header's __metadata__ is not an object")
    if metadata and not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path.name}: the header's __metadata__ holds what is no text")
    data_begin = 8 + length
    tensors = _file_tensors(path, entries, data_begin)
    _check_cover(path, tensors, data_begin, size)
    if metadata is None:
        return tensors, None
    return tensors, metadata


def _file_tensors(path: Path, entries: dict[str, Any], data_begin: int) -> dict[str, FileTensor]:
    """The tensors of a header. Those that are alike share a spec, and are checked quickly."""
    tensors: dict[str, FileTensor] = {}
    known: dict[tuple[Any, ...], tuple[TensorSpec, int]] = {}
    for name, entry in entries.items():
        form: tuple[Any, ...] = ()
        spec: TensorSpec | None
        nbytes = 0
        try:
            shape, (begin, end) = entry["shape"], entry["data_offsets"]
            form = entry["dtype"], *shape, *map(type, shape)  # 2.0 and True are no sizes
            spec, nbytes = known[form]
        except (KeyError, TypeError, ValueError):  # unlike all so far, or malformed
            spec = None
        if (
            spec is not None
            and type(begin) is type(end) is int
            and 0 <= begin <= end < LARGEST_NUMBER
            and end - begin == nbytes
        ):
            tensors[name] = FileTensor(name, spec, path, data_begin + begin, data_begin + end)
        else:
            tensor = _file_tensor(path, name, entry, data_begin)
            tensors[name], known[form] = tensor, (tensor.spec, tensor.nbytes)
    return tensors


def _file_tensor(path: Path, name: str, entry: Any, data_begin: int) -> FileTensor:
    """One tensor; raises CheckpointError for whatever is wrong with its entry."""
    try:
        dtype_name, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
        valid = isinstance(shape, list) and isinstance(dtype_name, str)
        valid = valid and all(type(n) is int and 0 <= n < LARGEST_NUMBER for n in numbers)
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise CheckpointError(f"{path.name}: the header's entry for {name!r} is malformed")
    try:
        spec = TensorSpec.of(dtype_name, tuple(shape))
    except KeyError as error:
        raise CheckpointError(
            f"{path.name}: tensor {name!r} has dtype {dtype_name!r}, which is not supported; "
            f"supported are {', '.join((*Dtype.__members__, *NARROW_BITS))}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path.name}: {name!r} is damaged: {error}") from error
    if end - begin != spec.nbytes:
        raise CheckpointError(
            f"{path.name}: the header gives {name!r} {end - begin} bytes, but {dtype_name} "
            f"{list(shape)} takes {spec.nbytes}; the file is damaged"
        )
    return FileTensor(name, spec, path, data_begin + begin, data_begin + end)


def _check_cover(path: Path, tensors: dict[str, FileTensor], begin: int, size: int) -> None:
    """The tensors must follow one another without gaps from `begin` to the file's end."""
    position = begin
    for info in tensors.values():
        if info.begin != position:
            break
        position = info.end
    else:  # they are in order, as in most files
        _check_end(path, position, size)
        return
    position = begin
    for info in sorted(tensors.values(), key=lambda info: (info.begin, info.end)):
        if info.begin != position:
            what = "overlaps another tensor" if info.begin < position else "leaves a hole before it"
            raise CheckpointError(
                f"{path.name}: the header's offsets are wrong: {info.name!r} {what}"
            )
        position = info.end
    _check_end(path, position, size)


def _check_end(path: Path, position: int, size: int) -> None:
    """The last tensor must end where the file does."""
    if position > size:
        raise CheckpointError(
            f"{path.name} is truncated: its header needs {position} bytes, the file has {size}; "
            "copy or download it again"
        )
    if position < size:
        raise CheckpointError(
            f"{path.name} has {size - position} bytes that its header does not account for; "
            "the file is damaged"
        )
