"""Synthesize: write a packed checkpoint in its original layout again, tensor by tensor.

File names, tensor names, order, shapes and dtypes, config and side files are the original's.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from ders_core.compute.progress import Meter, Progress, counted, quiet
from ders_core.compute.threads import ahead
from ders_core.errors import CheckpointError
from ders_core.files.inputs import unchanged_inputs
from ders_core.files.model_files import index_name
from ders_core.files.output import new_target, output_directory
from ders_core.files.side_files import copy_side_files, local_bytes
from ders_core.files.spec import TensorSpec
from ders_core.files.writer import (
    NO_METADATA,
    file_bytes,
    tensor_bytes,
    write_file,
    write_index,
    write_text,
)
from ders_core.later import torch
from ders_core.packed.reader import PackedCheckpoint


@unchanged_inputs()
def synthesize(
    packed: str | Path, out: str | Path, *, device: str = "cpu", progress: Progress = quiet
) -> dict[str, str]:
    """Write the new directory `out`; returns the hex SHA-256 of every tensor written.

    Checksums are checked first. One tensor is in memory at a time; of a tensor that holds many
    experts, one expert's share. progress counts bytes checked and written. Raises CheckpointError
    if the packed checkpoint is damaged, or is written meanwhile, OutputError if `out` cannot be
    written; then there is no `out`.
    """
    new_target(out)
    source = PackedCheckpoint(packed)
    meter = checked(source, progress)
    with output_directory(out, needs=original_bytes(source)) as partial:
        return write_original(source, partial, meter, device)


def checked(source: PackedCheckpoint, progress: Progress) -> Meter:
    """The meter of a synthesis whose packed bytes are counted: they have the checksums that they
    must have. Raises CheckpointError if not."""
    if not source.original.names():
        raise CheckpointError(f"{source.path} holds no tensors; copy the directory again")
    total = sum(map(file_bytes, _files(source).values()))
    meter = Meter(source.store.bytes_total + total, progress)
    problems = source.checksum_problems(meter.advance)
    if problems:
        raise CheckpointError(f"{source.path}: {problems[0]}; copy the directory again")
    return meter


def write_original(
    source: PackedCheckpoint, directory: Path, meter: Meter, device: str = "cpu"
) -> dict[str, str]:
    """Write the original's files into an empty directory; as of `synthesize`. meter: of
    `checked`."""
    files = _files(source)
    side_files = source.beside.files
    checksums: dict[str, str] = {}
    names = [name for specs in files.values() for name in specs]
    with closing(_pieces(source, names, device)) as flow:
        for file, specs in files.items():

            def read(name: str, file: str = file) -> Iterable[memoryview]:
                for piece in _next_pieces(name, flow):
                    yield from counted(tensor_bytes(piece), meter.advance, f"writing {file}")

            metadata = source.manifest.source.metadata.get(file, NO_METADATA)
            checksums |= write_file(directory / file, specs, read, metadata)
    index = index_name(source.config, files)
    if index is not None:
        write_index(directory / index, files, source.manifest.source.index)
    write_text(directory / "config.json", source.config_text)
    copy_side_files(side_files, directory)
    meter.finish("written")
    return checksums


def original_bytes(source: PackedCheckpoint) -> int:
    """Bytes of the files that `synthesize` writes: exact for weights, side files included."""
    return sum(map(file_bytes, _files(source).values())) + local_bytes(source.beside.files)


def _files(source: PackedCheckpoint) -> dict[str, dict[str, TensorSpec]]:
    """The original's weight files, and the tensors in each."""
    return {
        file: {name: source.original.spec(name) for name in names}
        for file, names in source.manifest.source.files.items()
    }


def _pieces(
    source: PackedCheckpoint, names: Sequence[str], device: str
) -> Generator[tuple[str, torch.Tensor | None]]:
    """(tensor, piece) for each piece of each tensor, on the CPU, and (tensor, None) at its end. A
    thread synthesizes the next pieces while the caller writes one."""

    def synthesized() -> Iterator[tuple[str, torch.Tensor | None]]:
        for name in names:
            for piece in source.original.pieces(name, device):
                yield name, piece.cpu()
            yield name, None

    yield from ahead(synthesized())


def _next_pieces(
    name: str, flow: Iterator[tuple[str, torch.Tensor | None]]
) -> Iterator[torch.Tensor]:
    """The pieces of the tensor that comes next in the flow, which must be `name`."""
    for tensor, piece in flow:
        assert tensor == name, (tensor, name)
        if piece is None:
            return
        yield piece
