"""Export: a packed checkpoint taken home in any form, with a model card, and checked."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import OutputError
from ders_core.files.checksum import checksum
from ders_core.files.output import output_directory
from ders_core.files.store import TensorStore
from ders_core.packed.patch import make_patch, read_back
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.card import model_card
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.units import bytes_text

CARD = "README.md"
Format = Literal["packed", "dense", "patch"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at after writing."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class ExportResult:
    """bytes: of the weight files written; of a patch, of the tensors that travel."""

    out: str
    format: str
    bytes: int
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def export(
    packed: str | Path,
    out: str | Path,
    format: Format = "packed",
    *,
    base: str | Path | None = None,
    quality: Mapping[str, Any] | None = None,
    progress: Progress = quiet,
) -> ExportResult:
    """Write `out` in the given form, read it back, and say what was checked.

    base: what a patch will be applied to (see `ders_core.packed.patch.make_patch`). A directory
    that fails a check is removed and OutputError raised. progress counts bytes, written and then
    read back.
    """
    if format not in get_args(Format):
        raise OutputError(f"unknown format {format!r}; known are {', '.join(get_args(Format))}")
    if base is not None and format != "patch":
        raise OutputError(f"a base belongs to the format patch, not to {format}; leave it out")
    source = PackedCheckpoint(packed)
    target = Path(out).expanduser()
    if format == "patch":
        return _patch(source, target, base, quality, progress)
    with output_directory(target) as partial:
        inner = partial / "checkpoint"
        sums = _write(source, inner, format, progress)
        store = TensorStore.open(inner)
        size = store.bytes_total
        (inner / CARD).write_text(model_card(source, format, size, quality), encoding="utf-8")
        checks = _check(source, inner, store, format, sums, progress)
        for check in checks:
            if not check.ok:
                raise OutputError(f"{target} was written wrongly and removed: {check.detail}")
        for file in inner.iterdir():
            file.rename(partial / file.name)
        inner.rmdir()
    return ExportResult(str(target), format, size, tuple(checks))


def _patch(
    source: PackedCheckpoint,
    target: Path,
    base: str | Path | None,
    quality: Mapping[str, Any] | None,
    progress: Progress,
) -> ExportResult:
    with output_directory(target) as partial:
        made = make_patch(source, partial, base, progress=progress)
        (partial / CARD).write_text(
            model_card(source, "patch", made.bytes, quality, made.base), encoding="utf-8"
        )
        problems = read_back(partial)
        if problems:
            raise OutputError(f"{target} was written wrongly and removed: {problems[0]}")
    read = f"{bytes_text(made.bytes)} travel"
    needs = f"{bytes_text(made.needed)} are taken from the base and compared when it is applied"
    checks = (
        Check("every tensor reads back as written", True, read),
        Check("the rest is named by its checksum", True, needs),
    )
    return ExportResult(str(target), "patch", made.bytes, checks)


def _write(
    source: PackedCheckpoint, out: Path, format: Format, progress: Progress
) -> dict[str, str]:
    """Write the checkpoint; returns the checksums that reading it back must give."""
    if format == "dense":
        return synthesize(source.path, out, progress=progress)
    meter = Meter(source.bytes_total, progress)
    out.mkdir()
    for file in sorted(source.path.iterdir()):
        if file.is_file() and file.name != CARD:
            shutil.copyfile(file, out / file.name)
            size = file.stat().st_size if file.suffix == ".safetensors" else 0
            meter.advance(size, f"copied {file.name}")
    return dict(source.manifest.checksums)


def _check(
    source: PackedCheckpoint,
    out: Path,
    store: TensorStore,
    format: Format,
    sums: Mapping[str, str],
    progress: Progress,
) -> list[Check]:
    meter, damaged = Meter(store.bytes_total, progress), []
    for name, info in store.tensors.items():
        if sums.get(name) != checksum(info):
            damaged.append(name)
        meter.advance(info.nbytes, "reading back")
    checks = [
        Check(
            "every tensor reads back as written",
            not damaged and sums.keys() == store.tensors.keys(),
            f"{len(sums)} checksums agree" if not damaged else f"{damaged[0]!r} differs",
        )
    ]
    if format == "packed":
        found = verify(out)
        detail = found.problems[0] if found.problems else "it opens and fits its manifest"
        return [*checks, Check("opens as a packed checkpoint", found.ok, detail)]
    original = source.original
    wrong = [name for name in original.names() if store.tensors[name].spec != original.spec(name)]
    detail = f"{wrong[0]!r} has another shape or dtype" if wrong else "names, shapes and dtypes"
    return [*checks, Check("has the original's layout", not wrong, detail)]
