"""Make the weight files of an output complete, when all groups are encoded.

What is carried is written, small groups that were staged are copied, and large ones moved. Groups
that another run or machine wrote are read back first, unless they are copied, which reads them too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from ders_core.compute.progress import Meter, counted
from ders_core.files.in_place import write_at
from ders_core.files.output import UNFINISHED
from ders_core.files.tensor import TensorReader
from ders_core.files.writer import Specs
from ders_core.packed.writer import write_weight_files
from ders_core.pipeline.own_files import staged_files
from ders_core.pipeline.plan import Key
from ders_core.pipeline.staging import StagedGroup, Staging, check_against, check_foreign


def complete_in_place(
    staging: Staging,
    carried: Mapping[str, TensorReader],
    groups: Collection[StagedGroup],
    run: str,
    meter: Meter,
) -> dict[str, str]:
    """Where groups are in their places: write what is carried to its places, and give the weight
    files their names. run: as of `writer_of`. Returns the checksums of all tensors. Raises
    OutputError, CheckpointError."""
    assert staging.places is not None
    checksums = _checksums(groups)
    _read_back(groups, run, meter)
    for name, tensor in carried.items():
        place = staging.places[name]
        message = f"writing {place.file.name.removesuffix(UNFINISHED)}"
        checksums[name] = write_at(place, counted(tensor.raw(), meter.advance, message))
    staging.release()
    return checksums


def complete_staged(
    staging: Staging,
    partial: Path,
    carried: Mapping[str, TensorReader],
    groups: Mapping[Key, StagedGroup],
    run: str,
    meter: Meter,
) -> tuple[Mapping[str, Specs], dict[str, str]]:
    """Where groups are staged: write what is carried and the small groups into weight files in
    `partial`, and move the large groups there. run: as of `writer_of`. Returns the tensors of each
    weight file, and the checksums of all tensors. Raises OutputError, CheckpointError."""
    files, own = staged_files(
        {name: tensor.spec for name, tensor in carried.items()},
        {
            key: {name: tensor.spec for name, tensor in group.tensors.items()}
            for key, group in groups.items()
        },
    )
    moved = [groups[key] for key in own.values()]
    _read_back(moved, run, meter)
    tensors = dict(carried)
    for group in groups.values():
        tensors |= group.tensors
    joined = {name: specs for name, specs in files.items() if name not in own}
    check = check_against(groups.values())
    checksums = write_weight_files(partial, joined, tensors, advance=meter.advance, check=check)
    staging.move(own)
    return files, checksums | _checksums(moved)


def _checksums(groups: Iterable[StagedGroup]) -> dict[str, str]:
    """Hex SHA-256 of each of their tensors, as they were encoded."""
    return {name: sha256 for group in groups for name, sha256 in group.checksums.items()}


def _read_back(groups: Iterable[StagedGroup], run: str, meter: Meter) -> None:
    for group in check_foreign(groups, run):
        meter.report(f"read back {group.report.title}")
