"""What was opened last, in the workspace, so that it outlives browser and app."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ders_core.files.untrusted_json import parse_json
from ders_core.files.writer import write_json
from ders_core.jobs.workspace import Workspace

RECENT = 8


@dataclass(frozen=True)
class Open:
    """checkpoint: path or address of a directory. recipe: YAML text. recent: paths, newest first.
    dense, upcycle: path of the dense model and YAML text of the Upcycle page."""

    checkpoint: str | None = None
    recipe: str | None = None
    recent: tuple[str, ...] = ()
    dense: str | None = None
    upcycle: str | None = None

    @classmethod
    def load(cls, workspace: Workspace) -> Open:
        """What was saved; nothing is open if that cannot be read."""
        try:
            data = parse_json(saved_in(workspace).read_bytes())
            return cls(
                _text(data["checkpoint"]),
                _text(data["recipe"]),
                tuple(path for path in map(_text, data["recent"]) if path is not None),
                _text(data.get("dense")),  # missing in files of earlier versions
                _text(data.get("upcycle")),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls()

    def save(self, workspace: Workspace) -> None:
        write_json(saved_in(workspace), asdict(self))

    def with_checkpoint(self, place: str | Path) -> Open:
        """Another checkpoint is open, and the newest of the recent ones."""
        path = str(place)
        recent = [path, *(known for known in self.recent if known != path)][:RECENT]
        return replace(self, checkpoint=path, recent=tuple(recent))


def saved_in(workspace: Workspace) -> Path:
    """The file of what was opened last."""
    return workspace.path / "studio.json"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
