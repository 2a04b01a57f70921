"""The workspace: one directory for what the studio makes, and the folders it may touch at all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ders_core.errors import JobError

WORKSPACE_VARIABLE = "DERS_WORKSPACE"
ROOTS_VARIABLE = "DERS_ROOTS"


@dataclass(frozen=True)
class Workspace:
    """Where things lie. Making one touches nothing; what is missing is made when it is needed.

    The job store must lie on a disk of this machine (SQLite's WAL does not work over NFS).
    """

    path: Path

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", Path(path).expanduser().resolve())

    @property
    def store_path(self) -> Path:
        return self.path / "ders.sqlite"

    @property
    def demo(self) -> Path:
        return self.path / "demo"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    @property
    def recipes(self) -> Path:
        return self.path / "recipes"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def analysis_dir(self, identity: str) -> Path:
        """Where the analysis of a checkpoint lies. Raises JobError for what is no identity."""
        if not identity.isalnum():
            raise JobError(f"{identity!r} is not the identity of a checkpoint")
        return self.path / "analysis" / identity

    def run_dir(self, job_id: int) -> Path:
        """Where a job keeps what it makes; deleted together with the job."""
        return self.runs / f"{int(job_id):05d}"

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders that pages and jobs may read and write: the workspace, the user's home, the
        current directory, and those in $DERS_ROOTS; links resolved."""
        named = os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep)
        places = [self.path, Path.home(), Path.cwd(), *(Path(name) for name in named if name)]
        return tuple(dict.fromkeys(place.expanduser().resolve() for place in places))

    def check_allowed(self, path: str | Path) -> Path:
        """The path, made absolute and with its links resolved; it need not exist.

        Raises JobError if it lies outside the roots.
        """
        try:
            resolved = Path(path).expanduser().resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise JobError(f"{str(path)!r} is not a usable path: {error}") from error
        if any(resolved.is_relative_to(root) for root in self.roots):
            return resolved
        allowed = ", ".join(map(str, self.roots))
        raise JobError(
            f"{path} lies outside the folders that may be used here ({allowed}); move it there, "
            f"or name its folder in {ROOTS_VARIABLE} and start again"
        )


def default_workspace() -> Workspace:
    """$DERS_WORKSPACE, or ~/.ders-studio."""
    return Workspace(os.environ.get(WORKSPACE_VARIABLE) or Path.home() / ".ders-studio")
