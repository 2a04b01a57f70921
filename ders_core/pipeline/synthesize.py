"""Synthesize: write a packed checkpoint in its original layout again, tensor by tensor.

File names, tensor names, order, shapes and dtypes, config and side files are the original's.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from ders_core.compute.buffers import keep_small_blocks
from ders_core.compute.pools import in_order
from ders_core.compute.progress import Meter, Progress, counted, quiet
from ders_core.compute.threads import side_by_side, threads_for
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
from ders_core.packed.assembler import Assembler
from ders_core.packed.reader import PackedCheckpoint

WORKING_BYTES_A_WEIGHT = 10
"""What synthesizing an expert holds at most, with the expert itself."""


@unchanged_inputs()
def synthesize(
    packed: str | Path, out: str | Path, *, device: str = "cpu", progress: Progress = quiet
) -> dict[str, str]:
    """Write the new directory `out`; returns the hex SHA-256 of every tensor written.

    Checksums are checked first. A tensor that holds many experts is in memory an expert at a time,
    as many of them as threads synthesize (`ders_core.compute.threads`). progress counts bytes
    checked and written. Raises CheckpointError if the packed checkpoint is damaged, or is written
    meanwhile, OutputError if `out` cannot be written; then there is no `out`.
    """
    new_target(out)
    keep_small_blocks()
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
    assembled = source.original.assembler.tensors
    names = [name for specs in files.values() for name in specs if name in assembled]
    with closing(_pieces(source.original.assembler, names, device)) as flow:
        for file, specs in files.items():

            def read(name: str, file: str = file) -> Iterable[bytes | memoryview]:
                if name not in assembled:
                    raw = source.original.readers[name].raw()
                    yield from counted(raw, meter.advance, f"writing {file}")
                    return
                for piece in islice(flow, assembled[name].pieces):
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


def _pieces(assembler: Assembler, names: Sequence[str], device: str) -> Generator[torch.Tensor]:
    """The pieces of each of these tensors, in order, on the CPU. Threads synthesize the next ones
    while the caller writes one."""
    where = torch.device(device)
    tensors = {name: assembler.tensors[name] for name in names}
    tasks = [(name, number) for name in names for number in range(tensors[name].pieces)]
    largest = max((t.numbers.elements // t.pieces for t in tensors.values()), default=0)
    count = threads_for(len(tasks), WORKING_BYTES_A_WEIGHT * largest, where)

    def synthesized(task: tuple[str, int]) -> torch.Tensor:
        return assembler.piece(*task, device).cpu()

    with side_by_side(where, count) as pool:
        yield from in_order(pool, synthesized, tasks, count + 1)
