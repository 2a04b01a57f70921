"""Files that travel with the package but are no modules: the app, its pages, the sample recipes.

In a source checkout they are at its top level; a built wheel carries them inside the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """The path of a shipped file or folder."""
    inside = PACKAGE / "_shipped" / name
    return inside if inside.exists() else PACKAGE.parent / name


def plain_yaml(file: Path) -> Any:
    """The plain values of a YAML file of this package, which needs none of the limits of
    `untrusted_yaml`: by libyaml, where PyYAML has it, in a tenth of the time."""
    text = file.read_text(encoding="utf-8")
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
