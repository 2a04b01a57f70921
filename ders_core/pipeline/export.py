"""Export: write a packed checkpoint in the format that somebody needs, with a model card, and check
what was written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ders_core.compute.progress import Meter, Progress, quiet, uncounted
from ders_core.errors import OutputError
from ders_core.files.address import copy_file
from ders_core.files.inputs import unchanged_inputs
from ders_core.files.output import new_target, output_directory
from ders_core.files.side_files import copy_side_files, local_bytes
from ders_core.files.store import TensorStore
from ders_core.packed.checksums import checksums
from ders_core.packed.names import MANIFEST
from ders_core.packed.patch import least_bytes, make_patch, patch_problems
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.card import CARD, is_ours, model_card, read_card
from ders_core.pipeline.formats import FORMATS, Format, FormatOrAlias, canonical
from ders_core.pipeline.given_quality import check_quality
from ders_core.pipeline.original_form import OriginalForm
from ders_core.pipeline.synthesize import original_bytes, synthesize
from ders_core.units import bytes_text

OUR_CARD = "DERS.md"
"""Our model card, where the original has one of its own: that one stays as it is."""


@dataclass(frozen=True)
class Check:
    """One check of the written files. detail: what was compared, or what is wrong."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class ExportResult:
    """bytes: of the weight files written; of a patch, of the tensors that travel."""

    out: str
    format: Format
    bytes: int
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Order:
    """What `export` was asked to write. base: for a patch. quality, outlook: for the model card.
    dtype: a word of `DTYPES`."""

    source: PackedCheckpoint
    base: str | Path | None
    quality: Mapping[str, Any] | None
    outlook: Mapping[str, Any] | None
    progress: Progress
    dtype: str

    @property
    def form(self) -> OriginalForm:
        """What the format `original` is written as."""
        return OriginalForm.of(self.source, self.dtype)


@dataclass(frozen=True)
class _Written:
    bytes: int
    checks: tuple[Check, ...]


@unchanged_inputs()
def export(
    packed: str | Path,
    out: str | Path,
    format: FormatOrAlias = "packed",
    *,
    base: str | Path | None = None,
    quality: Mapping[str, Any] | None = None,
    outlook: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    progress: Progress = quiet,
    ready: Callable[[ExportResult, Path], None] | None = None,
) -> ExportResult:
    """Write `out` in one of the `FORMATS`, read it back, and report the checks.

    base: the directory that a patch will be applied to (see `ders_core.packed.patch.make_patch`).
    quality: `Quality.to_dict()` of an evaluation, outlook: `asdict(report.outlook)` of the
    compression, for the model card. dtype: of the format original, a word of
    `ders_core.pipeline.original_form.DTYPES`. progress counts bytes, written and then read back.
    ready: gets the result and the finished directory right before that is renamed to `out`. Raises
    CheckpointError if `packed` is damaged or a file that is read is written meanwhile,
    EvaluationError if quality is something else, OutputError if the format or the dtype is unknown,
    `out` cannot be written, or a check fails; then there is no `out`.
    """
    chosen = canonical(format)
    if chosen not in FORMATS:
        raise OutputError(f"unknown format {format!r}; known are {', '.join(FORMATS)}")
    if base is not None and chosen != "patch":
        raise OutputError(f"a base belongs to the format patch, not to {chosen}; leave it out")
    if dtype != "auto" and chosen != "original":
        raise OutputError(f"a dtype belongs to the format original, not to {chosen}; leave it out")
    if quality is not None:
        quality = check_quality(quality, "quality").to_dict()
    target = new_target(out)
    order = _Order(PackedCheckpoint(packed), base, quality, outlook, progress, dtype)
    with output_directory(target, needs=_needs(order, chosen)) as partial:
        written = _WRITERS[chosen](order, partial)
        failed = next((check for check in written.checks if not check.ok), None)
        if failed is not None:
            raise OutputError(f"{target} was written wrongly and removed: {failed.detail}")
        result = ExportResult(str(target), chosen, written.bytes, written.checks)
        if ready is not None:
            ready(result, partial)
    return result


def _needs(order: _Order, format: Format) -> int:
    """Bytes that will be written at least. What a patch against a base takes is known once the base
    was read, and compared again then."""
    source = order.source
    if format == "original":
        return original_bytes(order.form)
    beside = local_bytes(source.beside.files)
    if format == "packed":
        return source.bytes_total + beside
    return beside + least_bytes(source, order.base)


def _write_packed(order: _Order, partial: Path) -> _Written:
    """A copy of the packed checkpoint, with a model card."""
    directory = partial / "checkpoint"
    directory.mkdir()
    packed = order.source
    meter = Meter(packed.bytes_total, order.progress)
    for file in sorted(packed.store.files):
        copy_file(packed.path / file, directory / file)
        meter.advance((directory / file).stat().st_size, f"copied {file}")
    for file in ("config.json", MANIFEST, *([packed.store.index] if packed.store.index else [])):
        copy_file(packed.path / file, directory / file)
    copy_side_files(packed.beside.files, directory)
    store = TensorStore.open(directory)
    _write_card(order, directory, "packed", store.bytes_total)
    read_back = _read_back(store, order.source.manifest.checksums, order.progress)
    problems = PackedCheckpoint(directory).checksum_problems(uncounted)
    detail = problems[0] if problems else "it opens and fits its manifest"
    opens = Check("opens as a packed checkpoint", not problems, detail)
    _move_up(directory)
    return _Written(store.bytes_total, (read_back, opens))


def _write_original(order: _Order, partial: Path) -> _Written:
    """The synthesized checkpoint."""
    source, directory = order.source, partial / "checkpoint"
    written = synthesize(source.path, directory, dtype=order.dtype, progress=order.progress)
    store = TensorStore.open(directory)
    _write_card(order, directory, "original", store.bytes_total)
    read_back = _read_back(store, written, order.progress)
    form, names = order.form, source.original.names()
    wrong = [name for name in names if store.tensors[name].spec != form.spec(name)]
    same = "names, shapes and dtypes" if form.dtype is None else f"in {form.dtype.value}"
    detail = f"{wrong[0]!r} has another shape or dtype" if wrong else same
    layout = Check("has the original's layout", not wrong, detail)
    _move_up(directory)
    return _Written(store.bytes_total, (read_back, layout))


def _write_patch(order: _Order, partial: Path) -> _Written:
    """The tensors that the base does not hold."""
    patch = make_patch(order.source, partial, order.base, progress=order.progress)
    _write_card(order, partial, "patch", patch.bytes, patch.base)
    problems = patch_problems(partial)
    detail = problems[0] if problems else f"{bytes_text(patch.bytes)} travel"
    needs = f"{bytes_text(patch.needed)} are taken from the base and compared when it is applied"
    checks = (
        Check("every tensor reads back as written", not problems, detail),
        Check("the rest is named by its checksum", True, needs),
    )
    return _Written(patch.bytes, checks)


_WRITERS: Mapping[Format, Callable[[_Order, Path], _Written]] = {
    "packed": _write_packed,
    "original": _write_original,
    "patch": _write_patch,
}


def _write_card(
    order: _Order,
    directory: Path,
    format: Format,
    bytes_written: int,
    base: tuple[str, str] | None = None,
) -> None:
    text = model_card(order.source, format, bytes_written, order.quality, base, order.outlook)
    theirs = read_card(directory)
    name = OUR_CARD if theirs and not is_ours(theirs) else CARD
    (directory / name).write_text(text, encoding="utf-8")


def _read_back(store: TensorStore, promised: Mapping[str, str], progress: Progress) -> Check:
    """Read every tensor again, and compare it with the checksum of what was to be written."""
    meter, damaged = Meter(store.bytes_total, progress), []
    for info, found in checksums([*store.tensors.values()]):
        if promised.get(info.name) != found:
            damaged.append(info.name)
        meter.advance(info.nbytes, "reading back")
    return Check(
        "every tensor reads back as written",
        not damaged and promised.keys() == store.tensors.keys(),
        f"{len(promised)} checksums agree" if not damaged else f"{damaged[0]!r} differs",
    )


def _move_up(directory: Path) -> None:
    """Move a directory's files into its parent, and remove it."""
    for file in directory.iterdir():
        file.rename(directory.parent / file.name)
    directory.rmdir()
