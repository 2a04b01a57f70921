"""Links that lead out of a checkpoint.

What a link leads to can be anything of this machine, a private key among others, and a checkpoint
that somebody gave away can hold any link. So a file that is copied as it is, or quoted when it is
wrong, lies in the checkpoint's own directory; or, as the hub's cache keeps it, in the folder
`blobs` of the same repository. Other links are followed for files of a form that nothing secret has
alone: weights, and what describes them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ders_core.errors import CheckpointError
from ders_core.files.address import is_remote

REPOSITORY = "models--"
"""How the hub's cache begins the names of its folders of repositories."""


def leads_out(path: Path, directory: Path) -> bool:
    """Whether a path within a checkpoint's directory is, by links, elsewhere. The directory itself
    may be a link; at an address nothing is."""
    if is_remote(path):
        return False
    root = Path(os.path.realpath(directory))
    place = Path(os.path.realpath(path))
    return not any(place.is_relative_to(home) for home in (root, *_blobs(root)))


def check_within(path: Path, directory: Path) -> None:
    """Raise CheckpointError for a file that `leads_out`."""
    if leads_out(path, directory):
        raise refusal(path)


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a config.json that leads out of its directory, unless its content
    names a model, as nothing does but the config of one."""
    named = config.get("model_type"), config.get("architectures")
    if not any(named):
        check_within(path, path.parent)


def refusal(path: Path) -> CheckpointError:
    """What to raise for a link that is not followed; quotes nothing of what it leads to."""
    return CheckpointError(
        f"{path} is a link that leads out of its directory, to what is no such file of a model, so "
        "it is not followed; put the file itself there"
    )


def _blobs(root: Path) -> list[Path]:
    """Where the hub's cache keeps the files of the repository that a directory is a part of."""
    return [
        snapshots.parent / "blobs"
        for snapshots in root.parents
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith(REPOSITORY)
    ]
