"""Which staged groups are still those of the source: a result never mixes two versions of it."""

from __future__ import annotations

from collections.abc import Mapping

from ders_core.checkpoint import Checkpoint
from ders_core.checkpoint.digest import stack_digest
from ders_core.compute.progress import Meter
from ders_core.pipeline.plan import Key
from ders_core.pipeline.staged_group import StagedGroup


def outdated(
    source: Checkpoint, staged: Mapping[Key, StagedGroup], extended: bool, meter: Meter
) -> list[Key]:
    """The staged groups whose weights are not those that the source holds now.

    A group that was encoded from files with the same stamps is not read again; of others the
    weights are hashed. extended: as of `Checkpoint.stack`. Raises CheckpointError.
    """
    keys = []
    for key, group in staged.items():
        if group.version == source.store.version:
            continue
        stack = source.stack(key, extended)
        meter.report(f"{stack.title}: comparing it with the source, which was written")
        if stack_digest(stack) == group.sha256:
            group.confirm(source.store.version)
        else:
            keys.append(key)
    return keys
