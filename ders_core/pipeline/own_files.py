"""Which staged groups are weight files of the output themselves, and which are joined into others.

A large group is staged as the weight file that it will be, and only gets another name in the end.
Small ones are copied together, so that a checkpoint is not cut into thousands of files.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

from ders_core.files.spec import TensorSpec
from ders_core.files.writer import Specs, filled, numbered

OWN_BYTES = 64_000_000
"""A group whose tensors have so many bytes is a file of its own. Fewer are copied in no time."""

K = TypeVar("K", bound=Hashable)


def is_own(nbytes: int) -> bool:
    """Whether a group of so many bytes of tensors is a weight file of its own."""
    return nbytes >= OWN_BYTES


def staged_files(
    carried: Specs, groups: Mapping[K, Specs]
) -> tuple[dict[str, dict[str, TensorSpec]], dict[str, K]]:
    """The weight files, and the keys of those that are a group's own, by their names.

    First come the files of what is carried and of the small groups, in their order; then the large
    groups, a file each, whatever its size.
    """
    own = {key: specs for key, specs in groups.items() if is_own(bytes_of(specs))}
    joined = dict(carried)
    for key, specs in groups.items():
        if key not in own:
            joined |= specs
    parts: list[dict[str, TensorSpec]] = filled(joined) if joined else []
    files = numbered([*parts, *map(dict, own.values())])
    return files, dict(zip(list(files)[len(parts) :], own, strict=True))


def most_copied(most: Iterable[int]) -> int:
    """The bytes that staged groups can take beyond those of the output.

    most: bytes of each group's tensors, at most. A group that turns out small lies there twice.
    """
    small = OWN_BYTES - 1
    return sum(max(0, 2 * min(nbytes, small) - nbytes) for nbytes in most)


def bytes_of(specs: Specs) -> int:
    """Of all tensors together."""
    return sum(spec.nbytes for spec in specs.values())
