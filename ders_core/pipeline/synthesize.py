"""Synthesize: write a packed checkpoint in its original layout again, tensor by tensor.

File names, tensor names, order, shapes and dtypes, config and side files are the original's, unless
another dtype is asked for.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ders_core.compute.buffers import keep_small_blocks, memory_is_reused
from ders_core.compute.pools import in_order
from ders_core.compute.progress import Meter, Progress, Tell, counted, quiet
from ders_core.compute.threads import side_by_side, threads_for
from ders_core.errors import CheckpointError, CodecError, OutputError
from ders_core.files.inputs import unchanged_inputs
from ders_core.files.model_files import index_name
from ders_core.files.output import new_target, output_directory
from ders_core.files.side_files import copy_side_files, local_bytes
from ders_core.files.tensor import FileTensor
from ders_core.files.writer import (
    NO_METADATA,
    tensor_bytes,
    write_file,
    write_index,
    write_text,
)
from ders_core.later import torch
from ders_core.packed.assembler import WORKING_BYTES_A_WEIGHT, Assembler
from ders_core.packed.checksums import checksums as checksums_of
from ders_core.packed.part_reads import HashedReads
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.leaving import tensors_on_cpu
from ders_core.pipeline.original_form import OriginalForm


@unchanged_inputs()
@memory_is_reused()
def synthesize(
    packed: str | Path,
    out: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    hashes: bool = True,
    progress: Progress = quiet,
) -> dict[str, str]:
    """Write the new directory `out`; returns the hex SHA-256 of every tensor written, or, without
    `hashes`, of those that are copied as they are: to take the others takes time.

    dtype: a word of `ders_core.pipeline.original_form.DTYPES`: base and delta are added in float32
    and the sum is rounded once, to the original's dtype (`auto`) or to that one, of which
    config.json then tells too. The base that is added is in the original's dtype, so one that is
    coded was rounded to it before; only with `base_error: shared`, and in another dtype than the
    original's, it comes in float32 and nothing but the sum is rounded.
    The packed checkpoint's bytes are read once, and hashed before they are decoded, with two
    exceptions: rows that another thread overtook, and a base that comes again after some others,
    are read twice, and the second time not hashed. Each checksum is compared as soon as a part was
    hashed to its end. A tensor that holds many experts is in memory an expert
    at a time, as many of them as threads synthesize (`ders_core.compute.threads`). progress counts
    bytes written. Raises CheckpointError if the packed checkpoint is damaged, or is written
    meanwhile, or has no other dtype, OutputError if `out` cannot be written, or a value is beyond
    the dtype; then there is no `out`.
    """
    new_target(out)
    keep_small_blocks()
    reads = HashedReads()
    form = OriginalForm.of(PackedCheckpoint(packed, reads.rows), dtype)
    with output_directory(out, needs=original_bytes(form)) as partial:
        return write_original(form, reads, partial, progress, device, hashes=hashes)


def write_original(
    form: OriginalForm,
    reads: HashedReads,
    directory: Path,
    progress: Progress = quiet,
    device: str = "cpu",
    *,
    hashes: bool = True,
) -> dict[str, str]:
    """Write the original's files into an empty directory; as of `synthesize`. reads: those of
    `form.source`."""
    source, files = form.source, form.files
    if not source.original.names():
        raise CheckpointError(f"{source.path} holds no tensors; copy the directory again")
    side_files = source.beside.files
    meter = Meter(form.weight_bytes, progress)
    checks = _Checks(source, reads, meter.report)
    checksums: dict[str, str] = {}
    assembled = source.original.assembler.tensors
    names = [name for specs in files.values() for name in specs if name in assembled]
    with closing(_pieces(form.assembler, names, device)) as flow:
        for file, specs in files.items():

            def read(name: str, file: str = file) -> Iterable[bytes | memoryview]:
                if name not in assembled:
                    with checks.explaining():
                        carried = form.carried(name, reads.rows)
                        yield from counted(carried, meter.advance, f"writing {file}")
                    return
                for _ in range(assembled[name].pieces):
                    with checks.explaining():
                        piece = next(flow)
                        form.check(name, piece)
                    checks.compare()
                    yield from counted(tensor_bytes(piece), meter.advance, f"writing {file}")
                    del piece  # its memory is for what is made while the next one is waited for

            metadata = source.manifest.source.metadata.get(file, NO_METADATA)
            copied = {name for name in specs if name not in assembled and form.is_copied(name)}
            hashed = None if hashes else copied
            written = write_file(directory / file, specs, read, metadata, hashed=hashed)
            for name in copied:
                reads.copied(source.store.tensors[name], written[name])
            checks.compare()
            checksums |= written
    checks.compare_all()
    index = index_name(source.config, files)
    if index is not None:
        write_index(directory / index, files, source.manifest.source.index)
    write_text(directory / "config.json", form.config_text)
    copy_side_files(side_files, directory)
    meter.finish("written")
    return checksums


@dataclass(frozen=True)
class _Checks:
    """Checksums of a packed checkpoint against its manifest. Each method raises CheckpointError if
    one differs. tell: hears of what is read for checksums alone, and may raise `Cancelled`."""

    source: PackedCheckpoint
    reads: HashedReads
    tell: Tell

    def compare(self) -> None:
        """Those that became known since the last call."""
        for tensor in self.reads.finished():
            self._compare(tensor, self.reads.checksum(tensor))

    def compare_all(self) -> None:
        """All, and names. Reads what was not read."""
        problems = self.source.checksum_problems(
            lambda _, text: self.tell(text), self.reads.checksum
        )
        if problems:
            raise self._refusal(problems[0])

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Tell of damage in place of what values led to that should not be there: most likely of
        what these were read from, so that is read to its end first."""
        try:
            yield
        except (CheckpointError, CodecError, OutputError):
            with closing(checksums_of(self.reads.begun(), self.reads.checksum)) as begun:
                for tensor, found in begun:
                    self._compare(tensor, found)
                    self.tell(f"checksums of {tensor.file_name}")
            self.compare_all()
            raise

    def _compare(self, tensor: FileTensor, found: str) -> None:
        problem = self.source.checksum_problem(tensor, found)
        if problem is not None:
            raise self._refusal(problem)

    def _refusal(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.source.path}: {problem}; copy the directory again")


def original_bytes(form: OriginalForm) -> int:
    """Bytes of the files that `synthesize` writes: exact for weights, side files included."""
    return form.weight_bytes + local_bytes(form.source.beside.files)


def _pieces(assembler: Assembler, names: Sequence[str], device: str) -> Generator[torch.Tensor]:
    """The pieces of each of these tensors, in order, on the CPU. Threads synthesize the next ones
    while the caller writes one."""
    tensors = {name: assembler.tensors[name] for name in names}
    places = {name: assembler.device_of(name, device) for name in names}
    where = next((each for each in places.values() if each.type != "cpu"), torch.device("cpu"))
    tasks = [(name, number) for name in names for number in range(tensors[name].pieces)]
    largest = max((t.numbers.elements // t.pieces for t in tensors.values()), default=0)
    count = threads_for(len(tasks), WORKING_BYTES_A_WEIGHT * largest, where)

    def synthesized(task: tuple[str, int]) -> torch.Tensor:
        return assembler.piece(*task, places[task[0]])

    with (
        side_by_side(where, count) as pool,
        closing(in_order(pool, synthesized, tasks, count)) as made,
    ):
        yield from tensors_on_cpu(made)
