"""Make the weight files of an output complete, when all groups are encoded.

What is carried is written to its places, and small groups that were staged are copied to theirs.
Groups that another run or machine wrote are read back first.
"""

from __future__ import annotations

from collections.abc import Mapping

from ders_core.compute.progress import Meter, counted
from ders_core.files.in_place import write_at
from ders_core.files.tensor import TensorReader
from ders_core.files.writer import Specs
from ders_core.pipeline.plan import Key
from ders_core.pipeline.staged_group import StagedGroup, check_foreign
from ders_core.pipeline.staging import Staging


def complete(
    staging: Staging,
    carried: Mapping[str, TensorReader],
    groups: Mapping[Key, StagedGroup],
    run: str,
    meter: Meter,
) -> tuple[dict[str, Specs], dict[str, str]]:
    """Write what is not in its place yet, and give the weight files their names. run: as of
    `writer_of`. Returns the tensors of each weight file, and the checksums of all tensors. Raises
    OutputError, CheckpointError, OSError."""
    for group in check_foreign(groups.values(), run):
        meter.report(f"read back {group.report.title}")
    for group in staging.append_staged(groups):
        meter.report(f"copied {group.report.title}")
    groups = staging.read(groups)
    checksums = {
        name: digest for group in groups.values() for name, digest in group.checksums.items()
    }
    for name, tensor in carried.items():
        chunks = counted(tensor.raw(), meter.advance, f"writing {name}")
        checksums[name] = write_at(staging.places[name], chunks)
    return staging.release(groups), checksums
