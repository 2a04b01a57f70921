"""What a source says with null comes back as null."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from support.given_experts import MakeCheckpoint, checkpoint_of, planted

from ders_core.codecs import Lossless
from ders_core.packed.open import open_checkpoint
from ders_core.packed.patch import apply_patch, rollback
from ders_core.pipeline.compress import compress
from ders_core.pipeline.export import export
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import Recipe, Rule

__all__ = ["checkpoint_of", "planted"]

LOSSLESS = Recipe(name="all bits", rules=(Rule(codec=Lossless()),))


def header(file: Path) -> dict[str, object]:
    data = file.read_bytes()
    found: dict[str, object] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def with_header_metadata(file: Path, text: str | None) -> None:
    """Write the file's header anew, with that text as `__metadata__`."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    entries.pop("__metadata__", None)
    inner = json.dumps(entries, separators=(",", ":"))[1:]
    first = b"{" + (f'"__metadata__":{text},'.encode() if text else b"") + inner.encode()
    first += b" " * (-len(first) % 8)
    file.write_bytes(len(first).to_bytes(8, "little") + first + data[8 + length :])


@pytest.mark.parametrize("value", [None, {}])
@pytest.mark.parametrize("metadata", ["null", None, '{"format":"pt"}'])
def test_nulls_come_back(
    value: object,
    metadata: str | None,
    checkpoint_of: MakeCheckpoint,
    planted: object,
    tmp_path: Path,
) -> None:
    source = checkpoint_of(planted([0, 0, 0])).path  # type: ignore[operator]
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": value}
    (source / "config.json").write_text(json.dumps(config))
    with_header_metadata(source / "model.safetensors", metadata)
    with safe_open(source / "model.safetensors", "pt") as reference:
        assert reference.metadata() == (json.loads(metadata) if metadata else None)
    compress(source, tmp_path / "packed", LOSSLESS)
    assert open_checkpoint(tmp_path / "packed").config == config
    synthesize(tmp_path / "packed", tmp_path / "back")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    compress(tmp_path / "packed", tmp_path / "again", LOSSLESS)
    synthesize(tmp_path / "again", tmp_path / "twice")
    assert (tmp_path / "twice/config.json").read_bytes() == (source / "config.json").read_bytes()


def test_a_rollback_brings_null_back(
    checkpoint_of: MakeCheckpoint, planted: object, tmp_path: Path
) -> None:
    source = checkpoint_of(planted([0, 0, 0])).path  # type: ignore[operator]
    with_header_metadata(source / "model.safetensors", "null")
    compress(source, tmp_path / "packed", LOSSLESS)
    export(tmp_path / "packed", tmp_path / "patch", "patch", base=source)
    apply_patch(source, tmp_path / "patch", tmp_path / "applied")
    rollback(tmp_path / "applied", tmp_path / "base")
    assert header(tmp_path / "base/model.safetensors") == header(source / "model.safetensors")
