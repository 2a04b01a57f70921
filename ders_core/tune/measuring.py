"""A recipe is compressed, measured against the original, and removed; what was measured is kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Progress, quiet
from ders_core.evaluate.evaluator import original_on_text
from ders_core.evaluate.original import Original
from ders_core.files.checksum import file_checksum
from ders_core.files.inputs import leave_out
from ders_core.files.named_texts import NamedTexts, by_name
from ders_core.files.texts import text_files
from ders_core.pipeline.compress import compress
from ders_core.pipeline.report import Report
from ders_core.recipe import Recipe
from ders_core.tune.trials import Measurement, TrialFiles

PACKING = "packing"
"""The directory of a packed checkpoint until it is measured."""


@dataclass(frozen=True)
class Setting:
    """How is measured. text: that the calibration never saw. device: "cpu" or "cuda"; of both,
    encoding and evaluation."""

    text: NamedTexts
    device: str = "cpu"
    max_tokens: int = 8192
    window: int = 512
    batch: int = 8
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Packed:
    """A packed checkpoint, and what was lost on the way."""

    path: Path
    report: Report


@dataclass
class Measuring:
    """Within a `with` block; the original runs when the first recipe is measured, and once."""

    checkpoint: Checkpoint
    calibration: str
    directory: Path
    setting: Setting
    progress: Progress = quiet
    files: TrialFiles = field(init=False)
    _stack: ExitStack = field(init=False, default_factory=ExitStack)
    _original: Original | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        setting = asdict(self.setting)
        texts = by_name(setting.pop("text"))
        checksums = {
            name: [file_checksum(file) for file in text_files(paths)]
            for name, paths in texts.items()
        }
        context = {
            "checkpoint": self.checkpoint.identity,
            "calibration": self.calibration,
            "texts": checksums,
            **setting,
        }
        self.files = TrialFiles(self.directory, context)

    def __enter__(self) -> Measuring:
        leave_out(self.directory)  # packed checkpoints come and go there
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def measure(self, recipe: Recipe, what: str) -> Measurement:
        """What was measured before is not measured again. what: names the recipe in messages.

        Raises DersError as `compress` and `evaluate` do. An interrupted compression is continued
        the next time.
        """
        known = self.known(recipe)
        if known is not None:
            return known
        self._ran()  # what it refuses is refused before anything is compressed
        with self.packed(recipe, what) as made:
            return self.measure_packed(made, recipe, what)

    def known(self, recipe: Recipe) -> Measurement | None:
        """What was measured before, if it was; what a process packed that died is removed."""
        self._cleared(recipe)
        return self.files.read(recipe.to_yaml())

    def measure_packed(self, made: Packed, recipe: Recipe, what: str) -> Measurement:
        """As `measure`, of what `packed` gave."""
        original = self._ran()
        self.progress(0, 0, f"measuring {what}")
        measurement = Measurement(
            nbytes=made.report.bytes_after,
            expert_bytes=sum(entry.bytes_after for entry in made.report.entries),
            quality=original.compare(made.path),
        )
        self.files.write(recipe.to_yaml(), measurement)
        return measurement

    @contextmanager
    def packed(self, recipe: Recipe, what: str) -> Iterator[Packed]:
        """A block in which the recipe is packed; it is removed afterwards. what: as of `measure`.
        Raises DersError as `compress` does."""
        packed = self._cleared(recipe)
        report = compress(
            self.checkpoint.path,
            packed,
            recipe,
            device=self.setting.device,
            resume=True,
            progress=self._named(f"compressing {what}"),
        )
        yield Packed(packed, report)
        shutil.rmtree(packed)

    def _cleared(self, recipe: Recipe) -> Path:
        """Where the recipe is packed, without what a process left there that died before it was
        measured, or right after."""
        packed = self.directory / f"{PACKING}-{self.files.name(recipe.to_yaml())[:8]}"
        if packed.exists():
            shutil.rmtree(packed)
        return packed

    def _ran(self) -> Original:
        if self._original is None:
            setting = asdict(self.setting)
            self._original = self._stack.enter_context(
                original_on_text(self.checkpoint.path, progress=self.progress, **setting)
            )
        return self._original

    def _named(self, what: str) -> Progress:
        def show(done: int, total: int, message: str) -> None:
            self.progress(done, total, f"{what}: {message}")

        return show
