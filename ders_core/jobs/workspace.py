"""The workspace: the directory of the studio's files, and the folders that it may access."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ders_core.errors import JobError
from ders_core.files.address import HUB, as_path, is_address, lies_below, shown
from ders_core.files.missing import cleaned, local_path, printable
from ders_core.files.package_data import PACKAGE, shipped

WORKER_LOG = "logs/worker.log"
"""In a workspace: what workers and libraries print, also as they crash."""

WORKSPACE_VARIABLE = "DERS_WORKSPACE"
ROOTS_VARIABLE = "DERS_ROOTS"

ROOT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^:/]*(?::\d+)?(?:/[^:]*)?|[^:]+")
"""One of several roots that are separated by colons; an address may contain colons."""


@dataclass(frozen=True)
class Workspace:
    """Paths of the studio's files. Directories are created when they are needed.

    The job store must be on a local disk (SQLite's WAL does not work over NFS).
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
    def worker_log(self) -> Path:
        return self.path / WORKER_LOG

    @property
    def analyses(self) -> Path:
        return self.path / "analysis"

    @property
    def scores(self) -> Path:
        """What tuning found out of each checkpoint."""
        return self.path / "scores"

    def analysis_dir(self, identity: str) -> Path:
        """Directory of a checkpoint's analysis. Raises JobError if `identity` is not one."""
        if not identity.isalnum():
            raise JobError(f"{identity!r} is not the identity of a checkpoint")
        return self.analyses / identity

    def growing_dir(self, identity: str) -> Path:
        """Directory of an analysis until its last layer is finished. Raises JobError likewise."""
        directory = self.analysis_dir(identity)
        return directory.with_name(directory.name + ".growing")

    def run_dir(self, job_id: int) -> Path:
        """Directory of a job's files; deleted together with the job."""
        return self.runs / f"{int(job_id):05d}"

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders that pages and jobs may read and write: the workspace, the user's home, the
        current directory unless it is that of the studio's own code, and those in $DERS_ROOTS;
        links resolved."""
        named = (Path(root) for root in _named_roots() if not is_address(root))
        folders = [self.path, Path.home(), *current_root(), *named]
        return tuple(dict.fromkeys(folder.expanduser().resolve() for folder in folders))

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses below which checkpoints may be read: the hub, and those in $DERS_ROOTS."""
        return f"{HUB}://", *(root for root in _named_roots() if is_address(root))

    def check_checkpoint(self, place: str | Path) -> Path:
        """A checkpoint to read: a path as `check_allowed`, or an address below `addresses`.

        Raises JobError if it is outside, and CheckpointError if it cannot be understood.
        """
        place = cleaned(place) if isinstance(place, str) else place
        if not isinstance(place, str) or not is_address(place):
            return self.check_allowed(place)
        if any(lies_below(place, root) for root in self.addresses):
            return as_path(place)
        allowed = ", ".join(map(shown, self.addresses))
        raise JobError(
            f"{shown(place)} lies outside the addresses that may be read here ({allowed}), or is "
            f"not plain; name its folder, without credentials, in {ROOTS_VARIABLE} and start again"
        )

    def check_allowed(self, path: str | Path) -> Path:
        """The absolute path with links resolved; it need not exist. Blanks and quotes around it,
        as a paste brings them along, are taken away unless something has such a name.

        Raises JobError if it is outside the roots, or an address.
        """
        clean = cleaned(str(path))
        if is_address(clean):
            raise JobError(f"{shown(clean)} lies elsewhere; give a local path")
        try:
            resolved = local_path(clean, JobError).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise JobError(f"{printable(path)} is not a usable path: {reason}") from error
        if any(resolved.is_relative_to(root) for root in self.roots):
            return resolved
        allowed = ", ".join(map(str, self.roots))
        raise JobError(
            f"{printable(path)} lies outside the folders that may be used here ({allowed}); move "
            f"it there, or name its folder in {ROOTS_VARIABLE} and start again"
        )


def current_root() -> list[Path]:
    """The current directory; none if it is that of the studio's own code, where the app runs."""
    here, code = Path.cwd().resolve(), shipped("app.py").resolve().parent
    return [] if here == code or here.is_relative_to(PACKAGE) else [here]


def allow_current_root() -> None:
    """Let the processes that this one starts, in whatever directory, use this one's, too."""
    roots = [os.environ.get(ROOTS_VARIABLE, ""), *map(str, current_root())]
    os.environ[ROOTS_VARIABLE] = os.pathsep.join(filter(None, roots))


def _named_roots() -> list[str]:
    return ROOT.findall(os.environ.get(ROOTS_VARIABLE, ""))


def place_label(place: str | Path) -> str:
    """A short name of a directory, 'demo / moe'; an address as it is."""
    if is_address(place) or not isinstance(place, str | Path):
        return str(place)
    path = Path(place)
    return f"{path.parent.name} / {path.name}"


def default_workspace() -> Workspace:
    """$DERS_WORKSPACE, or ~/.ders-studio."""
    return Workspace(os.environ.get(WORKSPACE_VARIABLE) or Path.home() / ".ders-studio")
