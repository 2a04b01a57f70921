"""Which groups are weight files of the output themselves, where lengths depend on the data.

The tensors of a large group whose lengths depend on the data are one file, which only gets another
name in the end, whatever processes encode groups and in whatever order they end. Those of small
groups are appended to others, so that a checkpoint is not cut into thousands of files.
"""

from __future__ import annotations

from ders_core.files.writer import Specs

OWN_BYTES = 64_000_000
"""From here on, the tensors of a group whose lengths depend on the data are a file of its own."""


def is_own(nbytes: int) -> bool:
    """Whether a group's tensors of so many bytes, whose lengths depend on the data, are a file."""
    return nbytes >= OWN_BYTES


def most_small() -> int:
    """The most bytes of a group that is none."""
    return OWN_BYTES - 1


def bytes_of(specs: Specs) -> int:
    """Of all tensors together."""
    return sum(spec.nbytes for spec in specs.values())
